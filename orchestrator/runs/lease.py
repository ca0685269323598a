"""Who may write a stage's folder: a lease that a dead owner loses.

The lease is a file that appears by `link`, which fails if it exists, on every file system. Its owner keeps it open
and counts up inside it; whoever else wants it watches the count. A count that stands still for `PATIENCE`
seconds by the watcher's own clock, or an owner whose process is gone from this very machine, means that the owner
is dead. Clocks of different machines are never compared. An owner that was only asleep finds its file replaced.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.errors import StoreError

LEASE = "lease.json"
BEAT_SECONDS = 2.0
PATIENCE = 20.0
LENGTH = 400


class Lease:
    """A held lease. `beat` regularly; `is_ours` tells whether it was lost."""

    def __init__(self, path: Path, descriptor: int, content: dict[str, object]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._content = content
        self._count = 0

    def beat(self) -> None:
        """Show that we live. Writing to the open file can never touch a successor's lease."""
        self._count += 1
        os.pwrite(self._descriptor, _encoded({**self._content, "count": self._count}), 0)

    def is_ours(self) -> bool:
        """False once another driver took the lease over."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Give the lease up."""
        if self.is_ours():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


@dataclass
class Leases:
    """The leases that this driver holds or watches; held ones are kept alive by a thread."""

    held: dict[Path, Lease] = field(default_factory=dict)
    _seen: dict[Path, tuple[bytes, float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self, folder: Path) -> bool:
        """Try to own `folder`. False: another driver that seems alive owns it; ask again later."""
        path = folder / LEASE
        if self._is_dead(path):
            self._take_away(path)
        lease = _create(path)
        if lease is None:
            return False
        with self._lock:
            self.held[folder] = lease
        self._keep_alive()
        return True

    def release(self, folder: Path) -> None:
        """Give one lease up."""
        with self._lock:
            lease = self.held.pop(folder, None)
        if lease is not None:
            lease.release()

    def close(self) -> None:
        """Give all leases up and stop the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for folder in list(self.held):
            self.release(folder)

    def _keep_alive(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with self._lock:
                for lease in self.held.values():
                    lease.beat()

    def _is_dead(self, path: Path) -> bool:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return False
        if _owner_is_gone(content):
            self._seen[path] = (content, 0.0)
            return True
        seen, since = self._seen.get(path, (b"", 0.0))
        if seen != content:
            self._seen[path] = (content, time.monotonic())
            return False
        return time.monotonic() - since > PATIENCE

    def _take_away(self, path: Path) -> None:
        """Move a dead owner's lease aside; put it back if it turns out to be a living one's."""
        judged, _ = self._seen.pop(path)
        aside = path.with_name(f"{LEASE}.{uuid.uuid4().hex}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        if aside.read_bytes() != judged:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _create(path: Path) -> Lease | None:
    content: dict[str, object] = {
        "owner": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }
    temporary = path.with_name(f"{LEASE}.{content['owner']}")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    except OSError as error:
        raise StoreError(f"cannot write `{path}`: {error.strerror}") from error
    os.pwrite(descriptor, _encoded({**content, "count": 0}), 0)
    try:
        os.link(temporary, path)
    except FileExistsError:
        os.close(descriptor)
        return None
    finally:
        temporary.unlink()
    return Lease(path, descriptor, content)


def _owner_is_gone(content: bytes) -> bool:
    try:
        owner = json.loads(content)
        if owner["host"] != socket.gethostname():
            return False
        process = psutil.Process(owner["pid"])
        is_other = abs(process.create_time() - owner["started"]) > 1.0
        return is_other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (ValueError, KeyError, TypeError):
        return False  # torn or foreign: let patience decide


def _encoded(content: dict[str, object]) -> bytes:
    return json.dumps(content).encode().ljust(LENGTH)
