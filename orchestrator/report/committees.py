"""What specialists add to their generalist: the tables of a judged committee, beside the stages it is made of."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from raydistill.errors import StoreError
from raydistill.report.predictions import Agreement, agreement, read_in_role, read_predictions
from raydistill.runs.files import read_json
from raydistill.runs.view import RunView, StageView

TABLES = "committee.json"
MANY = 10  # specialists that know a class: as in the paper, so many and more share a row
CHANCE = 0.05


class Accuracies(BaseModel):
    """Top-1 accuracy, and the accuracy on samples of the specialists' classes among these alone."""

    accuracy: float
    conditional: float


class Coverage(BaseModel):
    """Samples whose true class so many `specialists` know: how many the generalist gets `right`, and the net change."""

    specialists: int
    samples: int
    right: int
    change: int

    @property
    def relative(self) -> float:
        """The change as a fraction of what was right."""
        return self.change / self.right if self.right else 0.0


class Cost(BaseModel):
    """Specialists asked per sample (`active`), the share of samples that ask any, and seconds of training."""

    specialists: int
    active: float
    asked: float
    generalist_seconds: float
    specialists_seconds_serial: float
    specialists_seconds_parallel: float

    @property
    def share(self) -> float:
        """Which part of the specialists a sample asks on average."""
        return self.active / max(self.specialists, 1)


class Tables(BaseModel):
    """What `committee.json` holds."""

    samples: int
    generalist: Accuracies
    committee: Accuracies
    coverage: tuple[Coverage, ...]
    cost: Cost

    @property
    def change(self) -> int:
        """Newly right minus newly wrong samples."""
        return sum(row.change for row in self.coverage)

    @property
    def relative(self) -> float:
        """The change of the top-1 accuracy as a fraction of the generalist's."""
        right = sum(row.right for row in self.coverage)
        return self.change / right if right else 0.0

    @property
    def covered(self) -> int:
        """Samples whose class some specialist knows."""
        return sum(row.samples for row in self.coverage if row.specialists)


@dataclass(frozen=True)
class CommitteeResult:
    """One judged committee. `pair` compares it with the generalist sample by sample, where both kept predictions."""

    stage: StageView
    generalist: StageView
    specialists: tuple[StageView, ...]
    tables: Tables
    pair: Agreement | None

    @property
    def split(self) -> str:
        """The split it was judged on."""
        return str(self.stage.config.get("split", "test"))

    @property
    def active(self) -> str:
        """n: the specialists of so many of the generalist's most probable classes are asked."""
        return str(self._option("active", 1))

    @property
    def direction(self) -> str:
        """Of the divergence that the fusion minimises."""
        return str(self._option("direction", "forward"))

    @property
    def heads(self) -> tuple[str, ...]:
        """Kinds of heads of the specialists."""
        return tuple(dict.fromkeys(str(stage.config.get("head", "dustbin")) for stage in self.specialists))

    @property
    def groups(self) -> tuple[str, ...]:
        """Stages of the plan that the specialists are of."""
        return tuple(dict.fromkeys(stage.group for stage in self.specialists))

    @property
    def verdict(self) -> str:
        """`gain` or `loss` where the change is more than chance, `unclear` where it is not or cannot be judged."""
        change = self.tables.change
        if self.pair is None or not change:
            return "unclear"
        changed = self.pair.only_other_wrong + self.pair.only_student_wrong
        if chance_of(change, changed) > CHANCE:
            return "unclear"
        return "gain" if change > 0 else "loss"

    def _option(self, name: str, default: Any) -> Any:
        committee = self.stage.config.get("committee")
        return committee.get(name, default) if isinstance(committee, dict) else default


def read_committees(run: RunView) -> tuple[list[CommitteeResult], list[str]]:
    """All judged committees, and why others cannot be read."""
    return read_in_role(run, "committee", lambda stage: _read(run, stage))


def _read(run: RunView, stage: StageView) -> CommitteeResult:
    path = stage.folder.payload(TABLES)
    try:
        tables = Tables.model_validate(read_json(path))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise StoreError(f"`{path}` is damaged: {where}: {error.errors()[0]['msg']}") from None
    if len(stage.reads) < 2:
        raise StoreError(f"`{stage.name}` reads no generalist and specialists")
    generalist, *specialists = (run.stages[name] for name in stage.reads)
    split = str(stage.config.get("split", "test"))
    pair = _compare(generalist, stage, split)
    return CommitteeResult(stage, generalist, tuple(specialists), tables, pair)


def _compare(generalist: StageView, stage: StageView, split: str) -> Agreement | None:
    try:
        alone, together = read_predictions(generalist, split), read_predictions(stage, split)
    except StoreError:
        return None
    return agreement(generalist.name, alone.predicted(), together, alone.ids)


def chance_of(change: int, changed: int) -> float:
    """How probable a net change at least this large is if each of the `changed` samples were a coin's toss.

    McNemar's test with the correction for continuity (Edwards 1948).
    """
    distance = max(abs(change) - 1, 0)
    return math.erfc(distance / math.sqrt(2 * changed)) if changed else 1.0


def by_generalist(committees: Iterable[CommitteeResult]) -> list[list[CommitteeResult]]:
    """Committees that can be compared: of one generalist, judged on one split."""
    groups: dict[tuple[str, str], list[CommitteeResult]] = {}
    for committee in committees:
        groups.setdefault((committee.generalist.name, committee.split), []).append(committee)
    return list(groups.values())


def fold_coverage(rows: Sequence[Coverage]) -> list[tuple[str, Coverage]]:
    """Rows with their names by falling in number; ten specialists and more share one, as in the paper."""
    ordered = sorted(rows, key=lambda row: row.specialists)
    few = [(str(row.specialists), row) for row in ordered if row.specialists < MANY]
    many = [row for row in ordered if row.specialists >= MANY]
    if not many:
        return few
    together = Coverage(
        specialists=MANY,
        samples=sum(row.samples for row in many),
        right=sum(row.right for row in many),
        change=sum(row.change for row in many),
    )
    return [*few, (f"{MANY} or more", together)]
