"""What a search leaves on disk: `runs/searches/<plan name>-<fingerprint>/`, the truth about it.

    search.json         what is searched, and how it ended
    trials/<id>.json    one small record per trial, replaced whenever something is new
    best.yaml           the plan of the best trial, which `distill run` takes
    front/<id>.yaml     with a cost: the plans of all trials that no other beats in both
    stop                there while running trials are asked to write their checkpoints and end

A trial's id is a digest of its values, so that the same values are never tried twice; that of a segment of population
based training says which member's it is, and of which round. What its stages made lies in
`runs/stages/` as everywhere.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from raydistill.errors import StoreError
from raydistill.plan.fingerprint import digest
from raydistill.plan.search import Domain
from raydistill.runs.files import json_text, make_folder, read_as, replaced_file, write_json
from raydistill.runs.mirror import bring_all, remove, send

TrialStatus = Literal["running", "done", "stopped_early", "failed", "interrupted"]
SEARCH, BEST_PLAN, TRIALS, FRONT = "search.json", "best.yaml", "trials", "front"
OVER: frozenset[TrialStatus] = frozenset({"done", "stopped_early", "failed"})


class Segment(BaseModel):
    """A trial's place in a population: it trains `member`, counted from 0, during one of the `rounds`, from epoch
    `start` on to the end, or `until` a later epoch. `history` is what its plan says: its first values, after 0 epochs,
    and the values of every change, after so many; a `donor` is the member whose place it took when this segment began.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: int
    round: int
    rounds: int
    start: int
    until: int | None
    history: dict[int, dict[str, Any]]
    donor: int | None = None

    @property
    def name(self) -> str:
        """`member-03-round-2`, counted from 1."""
        return f"member-{self.member + 1:02d}-round-{self.round + 1}"

    @property
    def shown(self) -> str:
        """`member 3, round 2/5`."""
        return f"member {self.member + 1}, round {self.round + 1}/{self.rounds}"


class TrialRecord(BaseModel):
    """One trial: the `values` by their paths, and what became of it.

    `metric` is the searched metric after the last epoch, the mean over replicas; `epochs` the same after each epoch
    that has ended; `metrics` all that the metric's stage was judged by on validation. `cost` is that of its model,
    where it counts. `stages` are the nodes that depend on the values, with their folders below the storage root.
    Times are seconds since 1970, `seconds` those of the trial's own training. Of a `segment` they are the values and
    epochs of this part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    number: int
    values: dict[str, Any]
    status: TrialStatus = "running"
    metric: float | None = None
    cost: float | None = None
    epochs: dict[int, float] = {}
    metrics: dict[str, float] = {}
    seconds: float = 0.0
    started: float = 0.0
    finished: float | None = None
    stages: dict[str, str] = {}
    error: str | None = None
    segment: Segment | None = None

    def is_in(self, space: Mapping[str, Domain]) -> bool:
        """Whether the values are some that a search through `space` can have tried."""
        return self.values.keys() == space.keys() and all(
            domain.may_be(self.values[path]) for path, domain in space.items()
        )

    @property
    def is_over(self) -> bool:
        """Whether it need not be tried again."""
        return self.status in OVER


def trial_id(values: Mapping[str, Any]) -> str:
    """The name of these values."""
    return digest(values)[:8]


class SearchRun:
    """The folder of one search. One driver writes it, under a lease."""

    def __init__(self, root: Path, plan_name: str, fingerprint: str) -> None:
        self.root = root
        self.folder = root / "searches" / f"{plan_name}-{fingerprint}"
        self.best_plan = self.folder / BEST_PLAN
        self.front = self.folder / FRONT
        self.stop_file = self.folder / "stop"

    def begin(self) -> None:
        """Make the folder."""
        make_folder(self.folder / TRIALS)
        self.stop_file.unlink(missing_ok=True)
        remove(self.stop_file)
        bring_all(self.folder)

    def write(self, description: Mapping[str, Any]) -> None:
        """Replace `search.json`."""
        write_json(self.folder / SEARCH, dict(description))
        send(self.folder / SEARCH)

    def write_trial(self, record: TrialRecord) -> None:
        """Replace a trial's record. Only one that is over waits for the disk: the others are soon replaced."""
        path, values = self.folder / TRIALS / f"{record.id}.json", record.model_dump(mode="json")
        if record.is_over:
            write_json(path, values)
            send(path)
            return
        with replaced_file(path) as temporary:
            temporary.write_text(json_text(values), encoding="utf-8")

    def trials(self) -> list[TrialRecord]:
        """All trials in the order of their numbers."""
        return read_trials(self.folder)

    def interrupt_running(self) -> None:
        """What a driver that died left as running is interrupted."""
        for record in self.trials():
            if record.status == "running":
                self.write_trial(record.model_copy(update={"status": "interrupted"}))


def read_trials(folder: Path, but: Collection[str] = ()) -> list[TrialRecord]:
    """The trials of a search, but for some, by their numbers. A record that cannot be read is no record: it is tried
    again."""
    found = []
    for path in sorted((folder / TRIALS).glob("*.json")):
        if path.stem not in but:
            with suppress(StoreError):
                found.append(read_as(TrialRecord, path))
    return sorted(found, key=lambda record: record.number)


def best_first(records: Iterable[TrialRecord], mode: str) -> list[TrialRecord]:
    """Finished trials by their metric, then those stopped early by theirs, then the rest; ties by their cost, where it
    counts, and number. Of a population those of a later round come first."""
    sign = -1.0 if mode == "max" else 1.0

    def rank(record: TrialRecord) -> tuple[int, int, float, float, int]:
        order = {"done": 0, "stopped_early": 1}.get(record.status, 2)
        left = record.segment.rounds - record.segment.round if record.segment is not None else 0
        metric = 0.0 if record.metric is None else sign * record.metric
        return order, left, metric, record.cost or 0.0, record.number

    return sorted(records, key=rank)


def front_of(records: Iterable[TrialRecord], mode: str) -> list[TrialRecord]:
    """The finished trials that no other beats: none is better in metric or cost and as good in the other. The cheapest
    first; trials that are equal in both are all there."""
    sign = 1.0 if mode == "max" else -1.0
    points = [
        (record.cost, -sign * record.metric, record.number, record)
        for record in records
        if record.status == "done" and record.cost is not None and record.metric is not None
    ]
    front: list[tuple[float, float, int, TrialRecord]] = []
    for point in sorted(points, key=lambda point: point[:3]):
        if not front or point[1] < front[-1][1] or point[:2] == front[-1][:2]:
            front.append(point)
    return [record for *_, record in front]


def now() -> float:
    """Seconds since 1970, to the millisecond."""
    return round(time.time(), 3)
