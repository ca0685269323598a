"""Warm processes for stages on one worker: reused for the next stage of the same shape, ended when room is needed."""

import time
from dataclasses import dataclass, field
from typing import Any

import ray

from raydistill.execution.ray_backend.placement import OUTSIDE, all_but
from raydistill.execution.ray_backend.resources import Resources, total
from raydistill.execution.ray_backend.worker import StageWorker

MOST_ASKED_FOR = 1000  # replicas of a stage
IDLE_SECONDS = 15.0  # then other users of the Ray cluster get the room back; a new worker takes 3 s


@dataclass(eq=False)
class PooledWorker:
    """An actor, what it holds, and since when it has nothing to do (None: it is busy)."""

    shape: Resources
    actor: Any
    idle_since: float | None = field(default=None)


class WorkerPool:
    """The stage workers that live. A worker holds its resources until it is ended, busy or not."""

    def __init__(self, working_folder: str) -> None:
        self._working_folder = working_folder
        self._workers: list[PooledWorker] = []

    @property
    def held(self) -> Resources:
        """What all workers hold."""
        return total(worker.shape for worker in self._workers)

    def reuse(self, shape: Resources) -> PooledWorker | None:
        """The idle worker of this shape that was busy last, if there is one."""
        for worker in reversed(self._idle()):
            if worker.shape == shape:
                worker.idle_since = None
                return worker
        return None

    def start(self, shape: Resources, avoided: frozenset[str]) -> PooledWorker:
        """A new worker. Ray places it as soon as a machine has the room, but on none of the nodes with these ids."""
        resources = shape.to_ray()
        # An actor and no remote function: functions are fast, too, once their process is warm, but Ray ends idle ones
        # when it likes, and nobody can talk to a running one. Cold, each takes 3 s for torch; warm, 0.02 s.
        actor = (
            ray.remote(StageWorker)
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                memory=resources.get("memory"),
                resources=shape.custom_to_ray(),
                max_concurrency=2,  # one thread for the stage, one that hears `stop`
                scheduling_strategy=OUTSIDE,
                label_selector=all_but(avoided, shape.labels),
            )
            .remote(self._working_folder)
        )
        worker = PooledWorker(shape, actor)
        self._workers.append(worker)
        return worker

    def give_back(self, worker: PooledWorker) -> None:
        """The worker has finished its stage and can take another."""
        worker.idle_since = time.monotonic()

    def end(self, worker: PooledWorker) -> None:
        """Kill a worker; its resources are free."""
        # Counted as free at once, a moment before Ray does: an actor that is started now waits in Ray's queue so long.
        self._workers.remove(worker)
        ray.kill(worker.actor)

    def make_room(self, needed: Resources, free: Resources) -> bool:
        """End idle workers, the longest idle first, until `needed` is free. If all are too few, none is ended."""
        # All or nothing: a warm worker that is ended for a stage which still does not fit would be missed for nothing.
        idle = self._idle()
        if not needed.is_within(free + total(worker.shape for worker in idle)):
            return False
        while not needed.is_within(free):
            worker = idle.pop(0)
            free += worker.shape
            self.end(worker)
        return True

    def room(self, needed: Resources, free: Resources) -> int:
        """How often there is room for a worker, counting what idle ones would make."""
        free += total(worker.shape for worker in self._idle())
        count = 0
        while count < MOST_ASKED_FOR and (needed * (count + 1)).is_within(free):
            count += 1
        return count

    def end_long_idle(self) -> None:
        """End workers that nothing has needed for a while."""
        for worker in self._idle():
            if worker.idle_since is not None and time.monotonic() - worker.idle_since > IDLE_SECONDS:
                self.end(worker)

    def end_idle(self) -> None:
        """End all that have nothing to do: some of them are on a node that goes."""
        for worker in self._idle():
            self.end(worker)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._workers):
            self.end(worker)

    def _idle(self) -> list[PooledWorker]:
        """Idle workers, the longest idle first."""
        idle = [worker for worker in self._workers if worker.idle_since is not None]
        return sorted(idle, key=lambda worker: worker.idle_since or 0.0)
