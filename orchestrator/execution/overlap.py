"""A back end that puts waiting to use: the driver's imports while the first stages start, and what a stage's process,
where torch is loaded, can do next for less than a new process could."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from raydistill.execution.makespan import Room
from raydistill.execution.request import Backend, Outcome, StageRequest
from raydistill.plan.order import Node
from raydistill.plan.resources import ResourcesConfig
from raydistill.runs.placement import Placement


class OverlappedBackend:
    """Is the `backend`, but gives stages by their folders what they do `afterwards`, and calls `while_they_run` once,
    when the first ones have been started."""

    def __init__(
        self,
        backend: Backend,
        afterwards: Mapping[str, tuple[str, ...]],
        while_they_run: Callable[[], None],
    ) -> None:
        self._backend, self._afterwards = backend, afterwards
        self._while_they_run: Callable[[], None] | None = while_they_run

    def check_feasible(self, nodes: Sequence[Node]) -> None:
        """As the back end does."""
        self._backend.check_feasible(nodes)

    def room(self) -> Room:
        """As the back end's."""
        return self._backend.room()

    def want(self, waiting: Iterable[Node]) -> None:
        """As the back end does."""
        self._backend.want(waiting)

    def try_start(self, request: StageRequest, *others: StageRequest) -> bool:
        """Start stages, each with what follows it."""
        return self._backend.try_start(*map(self._with_what_follows, (request, *others)))

    def _with_what_follows(self, request: StageRequest) -> StageRequest:
        return replace(request, afterwards=self._afterwards.get(request.folder, ()))

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        """As the back end's."""
        return self._backend.has_gpu_for(resources)

    def places(self, resources: ResourcesConfig) -> int:
        """As the back end has."""
        return self._backend.places(resources)

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """As the back end does; the first time the driver has something to do meanwhile."""
        if self._while_they_run is not None:
            self._while_they_run()
            self._while_they_run = None
        return self._backend.wait(seconds)

    def placements(self) -> Mapping[str, Placement]:
        """As the back end does."""
        return self._backend.placements()

    def stop(self) -> list[tuple[str, Outcome]]:
        """As the back end does."""
        return self._backend.stop()

    def close(self) -> None:
        """As the back end does."""
        self._backend.close()
