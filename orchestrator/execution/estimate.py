"""How long a plan will take, and how many of its stages run at the same time: an estimate from records of like stages
(`runs/durations.py`), and while it runs from how fast its own stages are."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from raydistill.execution.makespan import Job, Room, Schedule, schedule
from raydistill.execution.ray_backend.resources import WHOLE, capacity, resources_of_worker
from raydistill.execution.ready import ranks
from raydistill.plan.order import Graph, Node
from raydistill.runs.durations import Durations, part_left
from raydistill.runs.pace import Standing, duration
from raydistill.runs.plan_run import NodeState


@dataclass(frozen=True)
class Estimate:
    """Of `stages` that are to run, the durations of `known` ones are known; with those alone, the rest as if it took no
    time, the last ends after `seconds`: None where none is known. At most `side_by_side` run at the same time; of a run
    that has begun nobody asks that, and it is None."""

    stages: int
    known: int
    seconds: float | None
    side_by_side: int | None = None

    def __str__(self) -> str:
        """In words; empty where nothing is known."""
        if self.seconds is None:
            return ""
        if self.known == self.stages:
            return f"about {duration(self.seconds)}"
        part = f"from {self.known} of {self.stages} stages; nothing is known of the others"
        return f"about {duration(self.seconds)}, {part}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        seconds = None if self.seconds is None else round(self.seconds, 1)
        return {
            "stages": self.stages,
            "known": self.known,
            "seconds": seconds,
            "side_by_side": self.side_by_side,
        }


class Estimator:
    """Estimates for a graph in a `room`, made before the first of its stages begins."""

    def __init__(self, graph: Graph, root: Path, room: Room) -> None:
        self._graph, self._root, self._room = graph, root, room
        identities = {node.fingerprint: node.identity for node in graph.nodes.values()}
        self._durations = Durations(root, graph.test, identities.get)
        self._ranks = ranks(graph)
        self._jobs = {name: self._job(node) for name, node in graph.nodes.items()}
        self._works = {name: self._durations.work_of(node.identity) for name, node in graph.nodes.items()}
        self._parts = {name: _part_left(node, root) for name, node in graph.nodes.items()}
        self._seconds: dict[str, float | None] = {}

    def seconds(self, name: str) -> float | None:
        """About how long a stage takes that has not begun in this run; None when nothing is known."""
        if name not in self._seconds:
            node = self._graph.nodes[name]
            whole = self._durations.seconds(node.kind, node.identity, self._reserved(name))
            self._seconds[name] = None if whole is None else whole * self._parts[name]
        return self._seconds[name]

    def of(self, seconds: Mapping[str, float | None]) -> Estimate:
        """Of stages that have not begun, given how long each takes as far as that is known."""
        known = [own for own in seconds.values() if own is not None]
        # How many run side by side does not depend on what is known: the others last as long as most.
        usual = median(known) if known else 1.0
        even = self._planned({name: usual if own is None else own for name, own in seconds.items()})
        return replace(self._estimate(seconds), side_by_side=even.side_by_side)

    def left(
        self, states: Mapping[str, NodeState], standings: Mapping[str, Standing], now: float | None = None
    ) -> Estimate:
        """Of a run whose stages are in these states and as far as `standings` say; `now` is on the monotonic clock."""
        now = time.monotonic() if now is None else now
        left, shown = dict[str, float | None](), dict[str, float]()
        for name, state in states.items():
            if state.status == "running":
                ran = state.seconds + (0.0 if state.started is None else now - state.started)
                left[name] = standings.get(name, Standing()).seconds_left
                if (own := left[name]) is not None:
                    shown[name] = ran + own
                elif (expected := self.seconds(name)) is not None and expected > ran:
                    left[name] = expected - ran  # one that takes longer than its like may end at any moment
            elif state.status == "done":
                shown[name] = state.seconds
        rates = self._rates(shown)
        for name, state in states.items():
            if state.status == "waiting":
                expected = self.seconds(name)
                if expected is None and (rate := rates.get(self._like(name))) is not None:
                    expected = rate * self._size(name)
                left[name] = None if expected is None else max(0.0, expected - state.seconds)
        return self._estimate(left, {name for name, state in states.items() if state.status == "running"})

    def _estimate(self, left: Mapping[str, float | None], begun: Collection[str] = ()) -> Estimate:
        known = sum(seconds is not None for seconds in left.values())
        whole = (
            self._planned({name: seconds or 0.0 for name, seconds in left.items()}, begun) if known else None
        )
        return Estimate(len(left), known, whole.seconds if whole else None)

    def _planned(self, left: Mapping[str, float], begun: Collection[str] = ()) -> Schedule:
        jobs = {
            name: replace(self._jobs[name], seconds=seconds, begun=name in begun)
            for name, seconds in left.items()
        }
        return schedule(jobs, self._room)

    def _rates(self, shown: Mapping[str, float]) -> dict[str, float]:
        """What this run has shown itself: seconds per size of work, the mean of stages that are alike."""
        found: dict[str, list[float]] = {}
        for name, seconds in shown.items():
            if self._size(name):
                found.setdefault(self._like(name), []).append(seconds / self._size(name))
        return {like: sum(rates) / len(rates) for like, rates in found.items()}

    def _like(self, name: str) -> str:
        """What stages have in common that take the same time for the same size of work."""
        work = self._works[name]
        return f"{work.shape if work else name} {self._reserved(name)}"

    def _size(self, name: str) -> float:
        """Of the work that is left of a stage when the run begins."""
        work = self._works[name]
        return (work.size if work else 1.0) * self._parts[name]

    def _job(self, node: Node) -> Job:
        resources, machines = node.config.resources, self._room.machines
        worker = resources_of_worker(resources, map(self._room.limit.of, machines))
        workers = 1 if self._room.one_by_one else resources.workers
        return Job(node.reads, worker, 0.0, self._ranks[node.name], workers, node.config.workers_come_and_go)

    def _reserved(self, name: str) -> dict[str, float]:
        """What all its workers will hold; of those that come and go, those for which there is room."""
        job = self._jobs[name]
        workers = job.workers
        if job.come_and_go and not self._room.one_by_one:
            fitting = sum(capacity(machine, job.worker) for machine in self._room.machines)
            workers = max(1, min(workers, fitting))
        return {"cpus": job.worker.cpus * workers / WHOLE, "gpus": job.worker.gpus * workers / WHOLE}


def _part_left(node: Node, root: Path) -> float:
    epochs = getattr(node.config, "trained_epochs", None)
    return 1.0 if epochs is None else part_left(root / node.folder, epochs)
