"""Stored predictions on the test split, and what a student's teachers say together about the same samples."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import StoreError
from raydistill.report.comparison import TOGETHER
from raydistill.runs.stored_predictions import Floats, Integers, StoredColumns, StoredPredictions, softmax
from raydistill.runs.view import RunView, StageView

Made = TypeVar("Made")


class ErrorOverlap(NamedTuple):
    """On how many of the same test samples two models err: both, or one of them."""

    other: str
    both_wrong: int
    only_other_wrong: int
    only_student_wrong: int
    same_answer: int
    samples: int


@dataclass(frozen=True)
class Teaching:
    """The teachers of a student and how their predictions become one distribution."""

    name: str
    role: str
    names: tuple[str, ...]
    members: tuple[StoredPredictions, ...]
    weights: tuple[float, ...]
    rule: str

    @property
    def ids(self) -> Integers:
        """Ids of the samples, (N,)."""
        return self.members[0].ids

    @property
    def labels(self) -> Integers:
        """True classes, (N,)."""
        return self.members[0].labels

    def of_all(self) -> StoredColumns | None:
        """What they say together about the whole split; None where that is known of a sample alone."""
        if len(self.members) == 1 and self.members[0].is_sample:
            return self.members[0].of_all()
        if any(member.is_sample for member in self.members):
            return None
        mixed = self.probabilities()
        return StoredColumns(self.ids, self.labels, mixed.argmax(axis=1), mixed.max(axis=1))

    def at(self, rows: Integers) -> "Teaching":
        """The same teachers on some of the samples."""
        return replace(self, members=tuple(member.at(rows) for member in self.members))

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """The target distribution, (N, C): tempered inside an arithmetic mean, after a geometric one."""
        pairs = list(zip(self.members, self.weights, strict=True))
        if self.rule == "geometric":
            logits: Floats = reduce(add, (weight * member.logits for member, weight in pairs))
            return softmax(logits, temperature)
        mixed: Floats = reduce(add, (weight * member.probabilities(temperature) for member, weight in pairs))
        return mixed


def read_in_role(run: RunView, role: str, read: Callable[[StageView], Made]) -> tuple[list[Made], list[str]]:
    """What `read` finds in the finished stages of a role, and why others cannot be read."""
    found, problems = [], []
    for stage in run.in_role(role):
        if not stage.has_result:
            continue
        try:
            found.append(read(stage))
        except StoreError as error:
            problems.append(error.message)
    return found, problems


def error_overlap(
    name: str, answers: NDArray[Any], student: StoredColumns, ids: NDArray[np.int64]
) -> ErrorOverlap | None:
    """Compare another model's answers with the student's; None when it was asked about other samples."""
    if len(ids) != len(student.ids) or (ids != student.ids).any():
        return None
    own = student.predicted
    wrong, other_wrong = own != student.labels, answers != student.labels
    return ErrorOverlap(
        name,
        int((wrong & other_wrong).sum()),
        int((~wrong & other_wrong).sum()),
        int((wrong & ~other_wrong).sum()),
        int((own == answers).sum()),
        len(ids),
    )


def read_teaching(run: RunView, student: StageView, predictions: StoredPredictions) -> Teaching:
    """The teachers whose targets `student` learned from, on the student's test samples.

    `StoreError` says why they cannot be shown. Weights that differ per sample are replaced by their mean.
    """
    sources, rule = _teachers_of(run, student)
    if not sources:
        raise StoreError(f"`{student.name}` learned from no teacher")
    members = [stage.predictions() for stage, _ in sources]
    for (stage, _), member in zip(sources, members, strict=True):
        if member.logits.shape != predictions.logits.shape or (member.ids != predictions.ids).any():
            raise StoreError(f"`{stage.name}` was judged on other samples or classes than `{student.name}`")
    total = sum(weight for _, weight in sources)
    weights = tuple(weight / total for _, weight in sources)
    stages = [stage for stage, _ in sources]
    return Teaching(
        name=_name_together(stages),
        role="ensemble" if len(stages) > 1 else stages[0].role,
        names=tuple(stage.name for stage in stages),
        members=tuple(members),
        weights=weights,
        rule=rule,
    )


def _name_together(stages: Sequence[StageView]) -> str:
    """A teacher's name, or those of several: `3 × teacher`, `wide + deep`."""
    if len(stages) == 1:
        return stages[0].name
    counts = Counter(stage.group for stage in stages)
    if len(counts) > 4:
        return f"{len(stages)} teachers"
    return " + ".join(f"{count} × {name}" if count > 1 else name for name, count in counts.items())


def _teachers_of(run: RunView, student: StageView) -> tuple[list[tuple[StageView, float]], str]:
    """Teachers with their weights, and the rule that combines them."""
    if student.role in TOGETHER:
        return [], ""
    begun, named = student.config.get("initial"), student.config.get("teachers", ())
    stages = [run.stages[name] for name in student.reads]
    # What its weights come from is no teacher; alone, it tells whose knowledge they hold.
    begins = [
        stage for stage in stages if (ref := {"input": stage.fingerprint}) == begun and ref not in named
    ]
    reads = [stage for stage in stages if stage not in begins]
    if begins and not reads:
        return _teachers_of(run, begins[0])
    targets = [stage for stage in reads if not stage.makes_model]
    if not targets:
        combine = student.config.get("combine", {})
        weights = _weights_of(combine.get("weights"), len(reads))
        return list(zip(reads, weights, strict=True)), str(combine.get("rule", "arithmetic"))
    rule = str(targets[0].config.get("rule", "arithmetic"))
    return list(_leaves(run, targets[0], 1.0)), rule


def _leaves(run: RunView, stage: StageView, weight: float) -> Iterator[tuple[StageView, float]]:
    if stage.makes_model:
        yield stage, weight
        return
    if stage.config.get("committee"):
        yield _judged_committee(run, stage), weight
        return
    recorded = [stage.metric(f"targets/weight/{index}") for index in range(len(stage.reads))]
    for name, part in zip(stage.reads, recorded, strict=True):
        share = part if part is not None else 1 / len(stage.reads)
        yield from _leaves(run, run.stages[name], weight * share)


def _judged_committee(run: RunView, targets: StageView) -> StageView:
    """The stage that judges, on the test split, the same committee whose answers became these targets."""
    generalist = run.stages[targets.reads[0]].reads
    for stage in run.in_role("committee"):
        is_same = (
            stage.reads == (*generalist, *targets.reads[1:]) and stage.config.get("split", "test") == "test"
        )
        if is_same and stage.config.get("committee") == targets.config["committee"]:
            return stage
    raise StoreError(
        f"no stage of the plan judges the committee behind `{targets.name}`: an `evaluate` stage with the same"
        " `committee` would"
    )


def _weights_of(written: Any, count: int) -> list[float]:
    if isinstance(written, list | tuple) and len(written) == count:
        return [float(weight) for weight in written]
    return [1 / max(count, 1)] * count


def methods_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The options of the methods that taught a student: its one `method`, or those whose losses were summed."""
    written = config.get("methods") or [config.get("method")]
    return [method for method in written if isinstance(method, dict)] if isinstance(written, list) else []


def temperature_of(student: StageView) -> float:
    """The temperature a student was taught at; 1 for methods that have none."""
    for method in methods_of(student.config):
        temperature = method.get("temperature")
        if isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0:
            return float(temperature)
    return 1.0


def sum_of(parts: Iterator[Floats]) -> Floats:
    """The sum of arrays of one shape, holding two at a time."""
    total = next(parts)
    for part in parts:
        total = total + part
    return total
