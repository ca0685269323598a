"""The `timeout` of a stage. Its own process writes down what each thread is doing then, and fails the stage as soon as
the stage looks up; one that never does is ended by the back end, `GRACE_SECONDS` later.

The stacks are written by a thread in C: it also runs while the stage holds Python's lock. No clocks are compared: the
back end counts from when it first sees the file that the process begins with.
"""

import faulthandler
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from raydistill.errors import StageError, StageStopped
from raydistill.execution.request import StageRequest
from raydistill.runs.files import store_errors

GRACE_SECONDS = 10.0  # for the checkpoint of a stage that was only slow
STACKS = "stacks-rank{}.txt"


class Deadline:
    """Around the work of one rank: `with` raises `StageError` when the work took too long and has no other fault."""

    def __init__(self, request: StageRequest, rank: int) -> None:
        self._request, self._rank = request, rank
        self._seconds = request.shape.timeout_seconds
        self._path = stacks_path(request, rank)
        self._started = time.monotonic()
        self._file: IO[str] | None = None

    def has_passed(self) -> bool:
        """Whether the stage should stop."""
        return self._seconds is not None and time.monotonic() - self._started >= self._seconds

    def __enter__(self) -> "Deadline":
        if self._seconds is not None:
            self._started = time.monotonic()
            with store_errors(self._path):
                self._file = self._path.open("w", encoding="utf-8")
                self._file.write(f"{_mark(self._request)}, rank {self._rank}, process {os.getpid()}\n")
                self._file.flush()
            faulthandler.dump_traceback_later(self._seconds, file=self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):  # a full disk
            self._file.close()
        if not self.has_passed():
            self._path.unlink(missing_ok=True)
        elif error is None or isinstance(error, StageStopped):
            late = StageError(overdue(self._request))
            late.add_note(read_stacks(self._request))
            raise late from error


class DeadlineWatch:
    """The back end's look at a running attempt."""

    def __init__(self, request: StageRequest) -> None:
        self._request = request
        self._seconds = request.shape.timeout_seconds
        self._seen: tuple[str, float] = ("", 0.0)

    def is_over(self) -> bool:
        """Whether the attempt has had its time and more, and must be ended. A group that was restarted begins anew."""
        if self._seconds is None:
            return False
        begun = self._begun()
        if begun != self._seen[0]:
            self._seen = begun, time.monotonic()
        return bool(begun) and time.monotonic() - self._seen[1] > self._seconds + GRACE_SECONDS

    def _begun(self) -> str:
        with suppress(OSError), stacks_path(self._request, 0).open() as stream:
            line = stream.readline()
            if line.startswith(_mark(self._request)):
                return line
        return ""


def overdue(request: StageRequest) -> str:
    """One line for the table of outcomes."""
    return (
        f"{_too_long(request)}: `{stacks_path(request, 0)}` shows what it was doing; if it was only slow, raise the"
        " timeout: it continues from its checkpoint"
    )


def hung(request: StageRequest) -> str:
    """The same for an attempt that had to be ended."""
    if "Timeout (" in read_stacks(request):
        return overdue(request)
    return (
        f"{_too_long(request)}: its process stands still, or its machine no longer reaches the storage root"
    )


def read_stacks(request: StageRequest) -> str:
    """What all ranks of an attempt wrote when their time was over."""
    paths = (stacks_path(request, rank) for rank in range(request.shape.workers))
    texts = [path.read_text(errors="replace", encoding="utf-8") for path in paths if path.exists()]
    return "\n".join(text for text in texts if text.startswith(_mark(request)))


def stacks_path(request: StageRequest, rank: int) -> Path:
    """Where a rank writes."""
    return request.place / STACKS.format(rank)


def _too_long(request: StageRequest) -> str:
    return f"stage `{request.name}` did not end within its `resources.timeout` of {request.shape.timeout}"


def _mark(request: StageRequest) -> str:
    return f"attempt {request.attempt}"
