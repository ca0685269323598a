"""When a search ends before its last trial: somebody interrupts it, or its time is over."""

import threading
import time

from raydistill.errors import StoreError
from raydistill.runs.files import store_errors
from raydistill.runs.mirror import remove, send
from raydistill.runs.search_run import SearchRun

GRACE_SECONDS = 15.0  # for checkpoints


class Ending:
    """Watches the user's `stop` and the time budget. Trials in other processes look for the folder's stop file."""

    def __init__(self, run: SearchRun, stop: threading.Event, budget: float | None) -> None:
        self._file, self._stop = run.stop_file, stop
        self._deadline = None if budget is None else time.monotonic() + budget
        self._asked: float | None = None

    @property
    def is_asked(self) -> bool:
        """Whether running trials are to write their checkpoints and no other may begin."""
        if self._asked is None and (self._stop.is_set() or self.is_out_of_time):
            self._asked = time.monotonic()
            with store_errors(self._file):
                self._file.touch()
            send(self._file)
        return self._asked is not None

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time budget is used up."""
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def is_overdue(self) -> bool:
        """Whether trials had their time to end by themselves."""
        return self.is_asked and time.monotonic() - (self._asked or 0.0) > GRACE_SECONDS

    def clear(self) -> None:
        """Take the stop file away: the next search may start trials."""
        try:
            with store_errors(self._file):
                self._file.unlink(missing_ok=True)
            remove(self._file)
        except StoreError:
            return
