"""What specialists add to their generalist: the tables of a judged committee, beside the stages it is made of."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from raydistill.errors import StoreError
from raydistill.report.formatting import listing, whole
from raydistill.report.predictions import ErrorOverlap, error_overlap, read_in_role
from raydistill.runs.files import read_as
from raydistill.runs.view import RunView, StageView

TABLES = "committee.json"
MANY = 10  # specialists that know a class: as in the paper, so many and more share a row
CHANCE = 0.05
EFFECTS = {
    "gain": "better than it is alone",
    "loss": "worse than it is alone",
    "unclear": "no different beyond chance",
}


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


class CommitteeCost(BaseModel):
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
    cost: CommitteeCost

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
    pair: ErrorOverlap | None

    @property
    def split(self) -> str:
        """The split it was judged on."""
        return str(self.stage.config.get("split", "test"))

    @property
    def effect(self) -> str:
        """`gain` or `loss` where the change is more than chance, `unclear` where it is not or cannot be judged."""
        change = self.tables.change
        if self.pair is None or not change:
            return "unclear"
        changed = self.pair.only_other_wrong + self.pair.only_student_wrong
        if chance_of(change, changed) > CHANCE:
            return "unclear"
        return "gain" if change > 0 else "loss"

    @property
    def settings(self) -> dict[str, str]:
        """What a committee can be told, for its place in a table. n: the specialists of so many of the generalist's
        most probable classes are asked; the direction is that of the divergence which the fusion minimises."""
        committee = self.stage.config.get("committee")
        options = committee if isinstance(committee, dict) else {}
        groups = list(dict.fromkeys(stage.group for stage in self.specialists))
        heads = list(dict.fromkeys(str(stage.config.get("head", "dustbin")) for stage in self.specialists))
        return {
            "specialists": f"{listing(groups)} ×{whole(self.tables.cost.specialists)}",
            "head": listing(heads),
            "n": str(options.get("active", 1)),
            "direction": str(options.get("direction", "forward")),
        }

    @property
    def coverage(self) -> list[tuple[str, Coverage]]:
        """The rows of the paper's second table."""
        return fold_coverage(self.tables.coverage)


def read_committees(run: RunView) -> tuple[list[CommitteeResult], list[str]]:
    """All judged committees, and why others cannot be read."""
    return read_in_role(run, "committee", lambda stage: _read(run, stage))


def _read(run: RunView, stage: StageView) -> CommitteeResult:
    tables = read_as(Tables, stage.folder.payload(TABLES))
    if len(stage.reads) < 2:
        raise StoreError(f"`{stage.name}` reads no generalist and specialists")
    generalist, *specialists = (run.stages[name] for name in stage.reads)
    split = str(stage.config.get("split", "test"))
    pair = _compare(generalist, stage, split)
    return CommitteeResult(stage, generalist, tuple(specialists), tables, pair)


def _compare(generalist: StageView, stage: StageView, split: str) -> ErrorOverlap | None:
    try:
        alone, together = generalist.predictions(split).of_all(), stage.predictions(split).of_all()
    except StoreError:
        return None
    return error_overlap(generalist.name, alone.predicted, together, alone.ids)


def chance_of(change: int, changed: int) -> float:
    """How probable a net change at least this large is if each of the `changed` samples were a coin's toss.

    McNemar's test with the correction for continuity (Edwards 1948).
    """
    distance = max(abs(change) - 1, 0)
    return math.erfc(distance / math.sqrt(2 * changed)) if changed else 1.0


@dataclass(frozen=True)
class CommitteeGroup:
    """Committees that can be compared: of one generalist, judged on one split."""

    committees: tuple[CommitteeResult, ...]

    @property
    def columns(self) -> dict[str, list[str]]:
        """The settings in which they differ, with a value for each."""
        return {name: values for name, values in self._settings().items() if len(set(values)) > 1}

    @property
    def shared(self) -> list[str]:
        """The other settings: `head dustbin`, `n = 1`."""
        same = {name: values[0] for name, values in self._settings().items() if len(set(values)) == 1}
        same.pop("specialists", None)
        return [f"{name} {'= ' if name == 'n' else ''}{value}" for name, value in same.items()]

    def _settings(self) -> dict[str, list[str]]:
        settings = [committee.settings for committee in self.committees]
        return {name: [found[name] for found in settings] for name in settings[0]}

    @property
    def tally(self) -> list[str]:
        """`1 is better than it is alone`."""
        effects = Counter(committee.effect for committee in self.committees)
        return [
            f"{effects[effect]} {'is' if effects[effect] == 1 else 'are'} {words}"
            for effect, words in EFFECTS.items()
            if effects[effect]
        ]

    @property
    def changes(self) -> list[int]:
        """Newly right minus newly wrong samples of each."""
        return [committee.tables.change for committee in self.committees]

    @property
    def covered(self) -> list[str]:
        """`9,000 of 10,000` samples of the specialists' classes, once where they are the same."""
        tables = [committee.tables for committee in self.committees]
        return list(dict.fromkeys(f"{whole(own.covered)} of {whole(own.samples)}" for own in tables))

    @property
    def saved(self) -> list[float]:
        """The part of the specialists that a sample does not ask."""
        return [1 - committee.tables.cost.share for committee in self.committees]


def group_committees(committees: Iterable[CommitteeResult]) -> list[CommitteeGroup]:
    """A group for each generalist and split."""
    groups: dict[tuple[str, str], list[CommitteeResult]] = {}
    for committee in committees:
        groups.setdefault((committee.generalist.name, committee.split), []).append(committee)
    return [CommitteeGroup(tuple(group)) for group in groups.values()]


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
