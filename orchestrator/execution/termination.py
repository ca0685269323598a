"""A process that is told to end (SIGTERM) while it works on a stage: the stage writes a checkpoint of the step that it
is in, and whoever goes on with it repeats nothing.

A handler of Python's runs in the main thread, and only between two lines of Python: in a process whose main thread
waits in C for work, nobody can say when. The number of a signal is written into a socket at once, and read by a thread.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_SECONDS = (
    60.0  # for a step and its checkpoint; who ends processes for good waits half a minute, as a rule
)


class Termination:
    """What this process has heard; nothing, unless this was made in the main thread, where alone Python listens."""

    def __init__(self) -> None:
        self._is_announced, self._is_working = threading.Event(), False
        self._lock = threading.Lock()
        if threading.current_thread() is threading.main_thread():
            self._listen_from_now_on()

    def _listen_from_now_on(self) -> None:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # without a handler the process just ends
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget)
        threading.Thread(target=self._listen, name="termination", daemon=True).start()

    def is_announced(self) -> bool:
        """Whether the stage should write its checkpoint and stop."""
        return self._is_announced.is_set()

    @contextmanager
    def work(self) -> Iterator[None]:
        """While a stage is worked on, it is asked to stop; at all other times the process just ends."""
        with self._lock:
            self._is_working = True
        try:
            yield
        finally:
            with self._lock:
                self._is_working = False

    def _listen(self) -> None:
        while signal.SIGTERM not in self._read.recv(64):
            pass
        with self._lock:
            self._is_announced.set()
            if not self._is_working:
                os._exit(143)
        # The last word of a stage has to reach its driver, who then ends this process.
        threading.Event().wait(GRACE_SECONDS)
        os._exit(143)


def _forget() -> None:
    """In a child: it ends when it is told to, and its parent is not told."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
