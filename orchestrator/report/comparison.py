"""Who makes how many errors with how many parameters: every model of a plan run, its replicas taken together."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from raydistill.metrics import Accuracy, CalibrationError, Errors, Metric, Samples
from raydistill.runs.record import Hours
from raydistill.runs.view import RunView, StageView

ROLES = ("teacher", "ensemble", "committee", "assistant", "student", "baseline", "model")
TOGETHER = ("ensemble", "committee")
TAUGHT = ("teacher", "specialist")
NORMAL_95 = 1.959964


class Spread(NamedTuple):
    """A number over replicas: mean, sample standard deviation (None for a single one), and the values."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]


class Adjustment(NamedTuple):
    """By how much the logits of some classes were shifted after training, and how that was chosen."""

    source: str
    classes: tuple[int | str, ...]
    by: str
    offset: Spread | None

    @property
    def is_oracle(self) -> bool:
        """Whether the shift was chosen on the test split."""
        return self.by == "test_oracle"


@dataclass(frozen=True)
class Competitor:
    """A model of the plan, an ensemble or a committee, with the results of its replicas.

    `computed` marks a row that no stage stands for: its numbers come from stored predictions. `adjusted` tells what was
    shifted in a model that was adjusted after its training; `others` are its test values of the metrics, by name, that
    have no field of their own. `teachers` are those at the start of the chain that it was
    distilled along, specialists among them.
    """

    name: str
    role: str
    members: tuple[StageView, ...]
    errors: Spread | None = None
    samples: int | None = None
    validation: Spread | None = None
    ece: Spread | None = None
    others: Mapping[str, Spread] = field(default_factory=dict)
    parameters: int | None = None
    computed: bool = False
    adjusted: Adjustment | None = None
    teachers: tuple[StageView, ...] = ()

    @property
    def results(self) -> list[StageView]:
        """Replicas that have a result."""
        return [member for member in self.members if member.has_result]

    @property
    def times(self) -> int:
        """How many replicas the row stands for."""
        return 1 if self.computed else len(self.members)

    @property
    def compression(self) -> float | None:
        """Parameters of all its teachers over its own; None where one size is not known, and for an ensemble."""
        teachers = total_parameters(self.teachers)
        is_together = self.role in TOGETHER
        return teachers / self.parameters if teachers and self.parameters and not is_together else None

    def cost(self, name: str) -> Spread | None:
        """What the trainings of the replicas cost: `seconds_per_step`, `peak_bytes` or `trained_parameters`."""
        found = [result.record.costs.get(name, math.nan) for result in self.results if result.record]
        return spread([cost for cost in found if math.isfinite(cost)])

    @property
    def hours(self) -> Hours:
        """Of CPU and GPU that making one of its replicas took, on average; what it learned from is not counted."""
        held = sum((result.hours for result in self.results), Hours())
        count = max(1, len(self.results))
        return Hours(held.cpus / count, held.gpus / count)

    @property
    def multiply_adds(self) -> int | None:
        """Of one input; of an ensemble those of all its members."""
        found = self.cost("multiply_adds")
        return round(found.mean) if found and not self.computed else None

    @property
    def error_rate(self) -> float | None:
        """Test errors as a fraction."""
        return self.errors.mean / self.samples if self.errors and self.samples else None


@dataclass(frozen=True)
class Comparison:
    """All competitors of a run, and which of them a student is measured against."""

    competitors: tuple[Competitor, ...]
    known_metrics: tuple[type[Metric], ...] = ()

    @property
    def other_metrics(self) -> list[type[Metric]]:
        """By what models are compared beside errors and calibration error."""
        return [
            metric
            for metric in self.known_metrics
            if any(metric.name in row.others for row in self.competitors)
        ]

    def in_role(self, *roles: str) -> list[Competitor]:
        """Competitors that play one of these roles."""
        return [competitor for competitor in self.competitors if competitor.role in roles]

    def baseline_of(self, competitor: Competitor) -> Competitor | None:
        """The baseline of the same size if there is one, else the first; a baseline has none itself."""
        measured = [baseline for baseline in self.in_role("baseline") if baseline.errors]
        if competitor.role not in ("student", "assistant") or not measured:
            return None
        same = [baseline for baseline in measured if baseline.parameters == competitor.parameters]
        return (same or measured)[0]

    def is_of_other_size(self, competitor: Competitor) -> bool:
        """Whether its baseline is of another size."""
        baseline = self.baseline_of(competitor)
        return baseline is not None and baseline.parameters != competitor.parameters

    @property
    def is_mixed(self) -> bool:
        """Whether somebody is measured against a baseline of another size."""
        return any(self.is_of_other_size(row) for row in self.competitors)

    def share_of_baseline(self, competitor: Competitor) -> float | None:
        """Errors as a multiple of those of the baseline."""
        baseline = self.baseline_of(competitor)
        if baseline is None or not baseline.errors or not competitor.errors or not baseline.errors.mean:
            return None
        return competitor.errors.mean / baseline.errors.mean


def compare(run: RunView) -> Comparison:
    """Put all models of a run side by side, in the order of `ROLES`; what was adjusted, below what it was made from."""
    groups: dict[str, list[StageView]] = {}
    for stage in run.stages.values():
        if is_competitor(stage):
            groups.setdefault(stage.group, []).append(stage)
    competitors = sorted((_competitor(run, name, members) for name, members in groups.items()), key=_rank)
    return Comparison(tuple(_below_their_source(competitors)), run.metrics)


def _below_their_source(competitors: Sequence[Competitor]) -> Iterator[Competitor]:
    """Each competitor followed by what was adjusted from it."""
    by_source: dict[str, list[Competitor]] = {}
    for competitor in competitors:
        by_source.setdefault(competitor.adjusted.source if competitor.adjusted else "", []).append(competitor)
    waiting = by_source.get("", [])[::-1]
    while waiting:
        yield (competitor := waiting.pop())
        waiting += by_source.get(competitor.name, [])[::-1]


def is_competitor(stage: StageView) -> bool:
    """Models, ensembles and committees; a judgement of a single model, or on validation only, is none.

    Neither is a specialist: it is judged on its own classes and as many other samples as it was trained on.
    """
    if stage.makes_model:
        return True
    return stage.role in TOGETHER and (not stage.has_result or stage.metric(Errors.on("test")) is not None)


def total_parameters(stages: Iterable[StageView]) -> int | None:
    """Parameters of several models together; None when one is not known."""
    sizes = [stage.parameters for stage in stages]
    return None if None in sizes or not sizes else sum(size for size in sizes if size is not None)


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None of no values."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, tuple(values))


def measured(members: Iterable[StageView], metric: str) -> Spread | None:
    """A metric over those stages that have it. What is not finite was not measured."""
    values = (member.metric(metric) for member in members)
    return spread([value for value in values if value is not None and math.isfinite(value)])


def wilson_interval(rate: float, samples: int) -> tuple[float, float]:
    """95 % confidence interval of a rate that was measured on `samples` (Wilson 1927)."""
    rate = min(max(rate, 0.0), 1.0)  # a damaged record may say anything
    square = NORMAL_95**2 / samples
    middle = (rate + square / 2) / (1 + square)
    half = NORMAL_95 / (1 + square) * math.sqrt(rate * (1 - rate) / samples + square / (4 * samples))
    return max(0.0, middle - half), min(1.0, middle + half)


def _competitor(run: RunView, name: str, members: list[StageView]) -> Competitor:
    samples = measured(members, Samples.on("test"))
    ancestors = run.ancestors(members[0].name)
    return Competitor(
        name=name,
        role=members[0].role,
        members=tuple(members),
        errors=measured(members, Errors.on("test")),
        samples=int(samples.values[0]) if samples else None,
        validation=measured(members, Accuracy.on("validation")),
        ece=measured(members, CalibrationError.on("test")),
        others={
            metric.name: found
            for metric in run.metrics
            if metric.compared
            and metric not in (Accuracy, Errors, CalibrationError)
            and (found := measured(members, metric.on("test"))) is not None
        },
        parameters=next((member.parameters for member in members if member.parameters is not None), None),
        adjusted=_adjustment(run, members) if members[0].is_adjusted else None,
        teachers=tuple(stage for stage in ancestors if stage.role in TAUGHT and not stage.is_adjusted),
    )


def _adjustment(run: RunView, members: Sequence[StageView]) -> Adjustment:
    first = members[0]
    classes = first.config.get("classes")
    return Adjustment(
        source=run.stages[first.reads[0]].group if first.reads else "",
        classes=tuple(classes) if isinstance(classes, list) else (),
        by=str(first.config.get("by", "prior")),
        offset=measured(members, "class_bias/offset"),
    )


def _rank(competitor: Competitor) -> int:
    return ROLES.index(competitor.role) if competitor.role in ROLES else len(ROLES)
