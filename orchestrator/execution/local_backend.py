"""Runs stages one after another in the driver's own process: for debugging and for tests."""

import threading
import time
from collections.abc import Sequence

from orchestrator.execution.request import Outcome, StageRequest
from orchestrator.execution.run_stage import run_stage
from orchestrator.plan.order import Node


class LocalBackend:
    """The twin of the Ray back end without Ray. A stage that asks for several workers runs on one: its batches
    are the same global batches."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop or threading.Event()
        self._ended: list[tuple[str, Outcome]] = []

    def check_feasible(self, nodes: Sequence[Node]) -> None:
        """Everything fits: there is one process, and it is this one."""

    def try_start(self, request: StageRequest) -> bool:
        """Run a stage to its end, unless one has just ended and was not looked at yet."""
        if self._ended:
            return False
        outcome = run_stage(request, should_stop=self._stop.is_set, device=_device(request))
        self._ended.append((request.name, outcome))
        return True

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """What ended since the last call."""
        ended, self._ended = self._ended, []
        if not ended:
            time.sleep(seconds)
        return ended

    def stop(self) -> list[tuple[str, Outcome]]:
        """What ended; nothing runs between calls."""
        return self.wait(0.0)

    def close(self) -> None:
        """Nothing to free."""


def _device(request: StageRequest) -> str:
    import torch

    wants_gpu = request.shape.gpus is None or request.shape.gpus > 0
    return "cuda" if wants_gpu and torch.cuda.is_available() else "cpu"
