"""`results.json` while stages run: at most one write a second, so that a change costs little in a large graph."""

import logging
import threading
import time
from collections.abc import Mapping
from types import TracebackType

from raydistill.errors import StoreError
from raydistill.runs.plan_run import NodeState, PlanRun

SECONDS_BETWEEN = 1.0
TIMES_BETWEEN = (
    10.0  # a write of thousands of stages takes a tenth of a second: never more than a tenth of the time
)

log = logging.getLogger(__name__)


class LiveResults:
    """Writes, on a thread of its own, what `states` say soon after each `note_change`.

    A write that fails delays the news and stops nothing: the last write, at the end of the run, is not made here.
    """

    def __init__(self, run: PlanRun, states: Mapping[str, NodeState]) -> None:
        self._run, self._states = run, states
        self._changed, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="results", daemon=True)

    def __enter__(self) -> "LiveResults":
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._changed.set()
        self._thread.join()

    def note_change(self) -> None:
        """The states have changed."""
        self._changed.set()

    def _work(self) -> None:
        while self._changed.wait() and not self._over.is_set():
            self._changed.clear()
            started = time.monotonic()
            try:
                self._run.write_results(self._states, "running")
            except StoreError as error:
                log.warning("%s; the run goes on", error.message)
            took = time.monotonic() - started
            self._over.wait(max(SECONDS_BETWEEN, TIMES_BETWEEN * took))
