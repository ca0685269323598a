"""Runs stages one after another in the driver's own process: for debugging and for tests."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from raydistill.errors import PlanError
from raydistill.execution.makespan import Room
from raydistill.execution.ray_backend.resources import WHOLE, Resources
from raydistill.execution.request import Outcome, StageRequest
from raydistill.execution.run_stage import run_stage
from raydistill.plan.order import Node
from raydistill.plan.resources import ResourcesConfig
from raydistill.runs.placement import Placement, here


class LocalBackend:
    """The twin of the Ray back end without Ray. A stage that asks for several workers runs on one: its batches
    are the same global batches. `on_report` hears the name of a stage and what it reports."""

    def __init__(
        self,
        stop: threading.Event | None = None,
        on_report: Callable[[str, Mapping[str, float]], None] | None = None,
    ) -> None:
        self._stop = stop or threading.Event()
        self._on_report = on_report
        self._next: tuple[StageRequest, ...] = ()

    def placements(self) -> Mapping[str, Placement]:
        """The stage that was taken runs as soon as anybody looks."""
        return {request.name: Placement("running", (here(),)) for request in self._next}

    def check_feasible(self, nodes: Sequence[Node]) -> None:
        """Everything fits into this process, one after another; `PlanError` for what only makes sense side by side."""
        for node in nodes:
            if node.peers:
                raise PlanError(
                    f"stage `{node.name}` learns from `{node.peers[0]}` while both train, but with `--local` stages"
                    " run one after another; leave `--local` out, or take `train_peers`: peers in one process"
                )

    def room(self) -> Room:
        """This process, for one stage at a time."""
        import torch

        return Room((Resources(gpus=WHOLE * torch.cuda.is_available()),), one_by_one=True)

    def want(self, waiting: Iterable[Node]) -> None:
        """There is this process alone."""

    def try_start(self, request: StageRequest, *others: StageRequest) -> bool:
        """Take one stage, with others that train beside it; `wait` runs it."""
        if self._next:
            return False
        self._next = (request, *others)
        return True

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        """Whether this process has one, and the stage wants it."""
        return _device(resources) == "cuda"

    def places(self, resources: ResourcesConfig) -> int:
        """One stage runs at a time."""
        return 0 if self._next else 1

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Run what was taken to its end, however long that is."""
        if not self._next or self._stop.is_set():
            time.sleep(seconds)  # not `Event.wait`: a signal handler that sets the event would wait for us
            return self.stop()
        requests, self._next = self._next, ()
        return list(zip((request.name for request in requests), self._run(*requests), strict=True))

    def _run(self, request: StageRequest, *others: StageRequest) -> list[Outcome]:
        if others:
            from raydistill.execution.run_stack import run_stack

            return run_stack(
                (request, *others),
                should_stop=lambda attempt: self._stop.is_set(),
                on_report=self._on_report,
                device=_device(request.shape),
            )
        outcome = run_stage(
            request,
            should_stop=self._stop.is_set,
            on_report=self._on_report and partial(self._on_report, request.name),
            device=_device(request.shape),
        )
        return [outcome]

    def stop(self) -> list[tuple[str, Outcome]]:
        """What was taken and did not begin."""
        requests, self._next = self._next, ()
        return [(request.name, Outcome("stopped")) for request in requests]

    def close(self) -> None:
        """Nothing to free."""


def _device(resources: ResourcesConfig) -> str:
    import torch

    wants_gpu = resources.given_gpus is None or resources.given_gpus > 0
    return "cuda" if wants_gpu and torch.cuda.is_available() else "cpu"
