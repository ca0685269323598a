"""A Ray cluster in virtual time."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from raydistill.execution.request import Outcome, StageRequest
from raydistill.plan.order import Node
from raydistill.plan.resources import ResourcesConfig

Seconds = Callable[[str], float]


class SimulatedCluster:
    """A back end of `nodes` machines with so many CPUs each; `seconds` tells how long a stage of a name runs.

    `now` is the virtual time; a stage stays on the machine on which it found room.
    """

    def __init__(self, nodes: int, cpus: float, seconds: Seconds) -> None:
        self.free = [cpus] * nodes
        self.seconds = seconds
        self.now = 0.0
        self._ends: list[tuple[float, str, int, StageRequest]] = []

    def check_feasible(self, nodes: Sequence[Node]) -> None: ...

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        return False

    def want(self, waiting: Iterable[Node]) -> None: ...

    def placements(self) -> dict[str, Any]:
        return {}

    def try_start(self, request: StageRequest) -> bool:
        need = request.shape.cpus * request.shape.workers
        place = next((index for index, free in enumerate(self.free) if free >= need), None)
        if place is None:
            return False
        self.free[place] -= need
        heapq.heappush(self._ends, (self.now + self.seconds(request.name), request.name, place, request))
        return True

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        began = self.now
        self.now, name, place, request = heapq.heappop(self._ends)
        self.free[place] += request.shape.cpus * request.shape.workers
        return [(name, Outcome("done", self.now - began))]

    def stop(self) -> list[tuple[str, Outcome]]:
        return []

    def close(self) -> None: ...
