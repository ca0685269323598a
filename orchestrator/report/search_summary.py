"""What there is to say about a search: its axes, its trials from the best to the worst, and what they have in common.

Read from the search's own records; see `runs/search_view.py`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.ticker import MaxNLocator

from raydistill.metrics import Accuracy, Samples, find
from raydistill.plan.search import Domain
from raydistill.report.formatting import listing, percent
from raydistill.runs.search_formatting import short, short_names
from raydistill.runs.search_run import Segment, TrialRecord, best_first, front_of
from raydistill.runs.search_view import SearchView

LOWER_FENCE = 2.5  # times the way from the best to the upper quartile, for the axes of the metric


@dataclass(frozen=True)
class Axis:
    """One searched path; `name` is its short form."""

    path: str
    name: str
    domain: Domain

    def place(self, value: Any) -> float:
        """Where a value lies on the axis, from 0 to 1."""
        if self.domain.choice is not None:
            return self.domain.choice.index(value) / max(len(self.domain.choice) - 1, 1)
        low, high, number = self.domain.low, self.domain.high, float(value)
        if self.domain.is_logarithmic:
            low, high, number = math.log(low), math.log(high), math.log(number)
        return (number - low) / (high - low)

    def holds(self, value: Any) -> bool:
        """Whether a value lies on the axis."""
        if self.domain.choice is not None:
            return value in self.domain.choice
        return isinstance(value, int | float) and self.domain.low <= value <= self.domain.high

    @property
    def range_text(self) -> str:
        """`1 to 20, by the logarithm`, or all choices."""
        if self.domain.choice is not None:
            return listing([short(value) for value in self.domain.choice])
        scale = ", by the logarithm" if self.domain.is_logarithmic else ""
        is_whole = self.domain.kind.endswith("integer")
        low, high = self.domain.ends
        return f"{short(low)} to {short(high)}{scale}{', whole numbers' if is_whole else ''}"

    @property
    def ticks(self) -> list[Any]:
        """Values to name on the axis: all choices, or round numbers and the ends of a range."""
        if self.domain.choice is not None:
            return list(self.domain.choice)
        low, high = self.domain.low, self.domain.high
        inner = (
            _round_between(low, high) if self.domain.is_logarithmic else MaxNLocator(4).tick_values(low, high)
        )
        # A number so near to an end that their labels would touch is left out.
        return [low, *(tick for tick in inner if 0.08 < self.place(max(tick, low)) < 0.92), high]


def _round_between(low: float, high: float) -> list[float]:
    """1, 2 or 5 times a power of ten; only the powers where there are many."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    factors = (1,) if len(powers) > 3 else (1, 2, 5)
    return [factor * power for power in powers for factor in factors if low < factor * power < high]


@dataclass(frozen=True)
class Step:
    """A segment of a population's member with the trial whose weights it began with, and whether it is on the way of
    the best."""

    trial: TrialRecord
    segment: Segment
    before: TrialRecord | None
    is_of_best: bool


@dataclass(frozen=True)
class SearchSummary:
    """A search as it is on disk now."""

    view: SearchView
    axes: tuple[Axis, ...]
    trials: tuple[TrialRecord, ...]

    @property
    def metric(self) -> str:
        """What the metric's stage calls it: `validation/accuracy`."""
        return self.view.metric

    @property
    def is_fraction(self) -> bool:
        """Whether the metric is shown as a percentage."""
        known = find(self.metric.partition("/")[2])
        return (self.view.about.form or (known.form if known else "")) == "percent"

    @cached_property
    def ranked(self) -> list[TrialRecord]:
        """Finished trials from the best to the worst, then those stopped early, then the rest."""
        return best_first(self.trials, self.view.about.mode)

    @cached_property
    def last_round(self) -> int:
        """The last round of a population that somebody has ended, counted from 0; 0 in other searches."""
        ended = [trial.segment.round for trial in self.trials if trial.segment and trial.status == "done"]
        return max(ended, default=0)

    def is_compared(self, trial: TrialRecord) -> bool:
        """Whether a trial trained as long as the best: all did but the earlier segments of a population."""
        return trial.segment is None or trial.segment.round == self.last_round

    @cached_property
    def done(self) -> list[TrialRecord]:
        """Trials that trained to their end, from the best to the worst; of a population those of the last round."""
        found = [trial for trial in self.ranked if trial.status == "done" and is_measured(trial.metric)]
        return [trial for trial in found if self.is_compared(trial)]

    @cached_property
    def measured(self) -> list[TrialRecord]:
        """Trials with a value of the metric, those stopped early included, from the worst to the best; of a population
        those of the last round."""
        found = [trial for trial in self.trials if is_measured(trial.metric) and trial.status != "failed"]
        return sorted(filter(self.is_compared, found), key=lambda trial: self.sign * self.value(trial))

    @property
    def best_last(self) -> list[TrialRecord]:
        """The measured trials in the order in which they are drawn over each other."""
        return sorted(self.measured, key=lambda trial: (trial is self.best, self.strength(trial)))

    @cached_property
    def steps(self) -> list[Step]:
        """All segments of a population, those on the way of the best last."""
        places = {
            (trial.segment.member, trial.segment.round): trial for trial in self.trials if trial.segment
        }

        def before(segment: Segment) -> TrialRecord | None:
            member = segment.member if segment.donor is None else segment.donor
            return places.get((member, segment.round - 1))

        way, trial = set[str](), self.best
        while trial is not None and trial.segment is not None:
            way.add(trial.id)
            trial = before(trial.segment)
        steps = [
            Step(trial, trial.segment, before(trial.segment), trial.id in way)
            for trial in places.values()
            if trial.segment is not None
        ]
        return sorted(steps, key=lambda step: (step.is_of_best, step.trial.number))

    @cached_property
    def front(self) -> list[TrialRecord]:
        """The trials that no other beats in both metric and cost, the cheapest first; none where no cost counts."""
        return front_of(self.trials, self.view.about.mode) if self.view.about.cost else []

    @property
    def failed(self) -> list[TrialRecord]:
        """Trials that failed."""
        return [trial for trial in self.trials if trial.status == "failed"]

    @property
    def best(self) -> TrialRecord | None:
        """The best of those that trained to their end."""
        return self.done[0] if self.done else None

    @property
    def own_trial(self) -> TrialRecord | None:
        """The trial of the plan's own values, if they were tried."""
        own = self.view.about.own
        return next((trial for trial in self.done if trial.values == own and trial.segment is None), None)

    @property
    def judged(self) -> Mapping[str, float]:
        """The winner's final judgement, that on the test split included; empty before there is one."""
        judged = self.view.about.best
        return judged.metrics if judged and self.best and judged.trial == self.best.id else {}

    @property
    def sign(self) -> float:
        """1 when more is better, -1 when less is."""
        return 1.0 if self.view.about.mode == "max" else -1.0

    @property
    def standard_error(self) -> float | None:
        """Of an accuracy on so many validation samples as the best trial's, one sigma; None for other metrics."""
        if self.best is None or self.metric != Accuracy.on("validation"):
            return None
        samples, rate = self.best.metrics.get(Samples.on("validation")), self.value(self.best)
        return math.sqrt(rate * (1 - rate) / samples) if samples and 0 <= rate <= 1 else None

    @property
    def near(self) -> int:
        """How many other finished trials are within the standard error of the best."""
        if self.best is None or not self.standard_error:
            return 0
        top = self.sign * self.value(self.best)
        return sum(top - self.sign * self.value(trial) <= self.standard_error for trial in self.done) - 1

    @property
    def outcomes(self) -> dict[str, int]:
        """How many trials ended how, in the order in which they began."""
        return Counter(outcome_of_trial(trial) for trial in self.trials)

    def value(self, trial: TrialRecord) -> float:
        """The metric of a trial that has one."""
        assert trial.metric is not None
        return trial.metric

    def shown(self, value: float | None) -> str:
        """A value of the metric as words."""
        if value is None:
            return "–"
        return percent(value, 2) if self.is_fraction else f"{value:.5g}"

    def shown_values(self, values: Mapping[str, Any]) -> str:
        """`temperature 4.1, hard_weight 0.2`."""
        return ", ".join(f"{axis.name} {short(values.get(axis.path, '?'))}" for axis in self.axes)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """The part of the metric's axis that is shown: a few hopeless trials must not press the others together."""
        values = [self.value(trial) for trial in self.measured]
        return metric_limits(values, self.sign)

    def strength(self, trial: TrialRecord) -> float:
        """How strong a trial's colour is, from 0 for the worst to 1 for the best rank."""
        return self._ranks[trial.id] / max(len(self._ranks) - 1, 1)

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {trial.id: rank for rank, trial in enumerate(self.measured)}


def is_measured(value: float | None) -> bool:
    """Whether a metric was measured; a trial whose metric is not finite has none."""
    return value is not None and math.isfinite(value)


def outcome_of_trial(trial: TrialRecord) -> str:
    """`stopped early`, `done`."""
    return trial.status.replace("_", " ")


def metric_limits(values: Sequence[float], sign: float) -> tuple[float, float]:
    """From the lowest to the highest value that is shown, with some room; all of them unless some are far off."""
    scores = sorted((sign * value for value in values), reverse=True)
    best, typical = scores[0], scores[3 * len(scores) // 4]
    worst = max(scores[-1], best - LOWER_FENCE * (best - typical)) if best > typical else scores[-1]
    room = 0.06 * (best - worst) or 0.05 * abs(best) or 0.05
    ends = sorted((sign * (worst - room), sign * (best + room)))
    return ends[0], ends[1]


def summarize_search(view: SearchView) -> SearchSummary:
    """Work out what there is to say."""
    names = short_names(list(view.about.space))
    axes = tuple(Axis(path, names[path], domain) for path, domain in view.about.space.items())
    return SearchSummary(view, axes, tuple(view.trials()))
