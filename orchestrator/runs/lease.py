"""Who may write a stage's folder: a lease that a dead owner loses.

Leases on a folder are numbered. Whoever creates the file `lease-<n>.json` first, where n - 1 was the last and is
over, owns the folder; the last one is never deleted, so numbers only grow and no two drivers ever own a folder.

The owner counts up inside its file; whoever else wants the folder watches the count. A count that stands still for
`PATIENCE` seconds by the watcher's own clock, or an owner whose process is gone from this very machine, means that
the owner is dead. Clocks are never compared. An owner that was only asleep finds a higher number beside its own.

Behind a URL the lease is one object (`runs/bucket_lease.py`), created or swapped by one alone.
"""

import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import psutil

from raydistill.errors import StoreError
from raydistill.runs.bucket_lease import RELEASED, BucketLease, read_lease, take_lease
from raydistill.runs.files import json_line, make_folder, parse_json, store_errors
from raydistill.runs.mirror import Mirror, mirror_of
from raydistill.runs.remote_stage import RemoteStage

LEASE = re.compile(r"lease-(\d+)\.json")
# Ten beats. A driver held up for some seconds by a network file system, or by swapping, keeps its stages; what a dead
# one was training waits so long for its successor.
BEAT_SECONDS = 2.0
PATIENCE = 20.0
# Behind a URL beats are rarer, and a connection may be away for a minute.
BUCKET_PATIENCE = 90.0
LENGTH = 400  # bytes: every write replaces all of the one before, so a reader never finds a file cut short or empty


class Lease:
    """A held lease. `beat` regularly; `is_ours` tells whether it was lost."""

    def __init__(self, folder: Path, number: int, content: dict[str, object]) -> None:
        self.folder, self.number = folder, number
        self._content = content
        self._count = 0

    def beat(self) -> None:
        """Show that we live. The file is only ours, and gone once a successor is there."""
        self._count += 1
        self._rewrite({**self._content, "count": self._count})

    def is_ours(self) -> bool:
        """False once another driver took the folder over."""
        try:
            return _last_number(self.folder) == self.number
        except OSError:
            return False

    def release(self) -> None:
        """Give the lease up. The file stays, and says so."""
        # Not deleted: with the last file its number would go, and the next owner would be given it again. A driver that
        # slept through all of this would then take that lease for its own.
        self._rewrite(RELEASED)

    def _rewrite(self, content: dict[str, object]) -> None:
        # Opened each time: closing is what makes the other machines of a network file system see the change.
        # A write that fails is not worth more than a beat missed.
        with suppress(OSError):
            descriptor = os.open(_path(self.folder, self.number), os.O_WRONLY)
            try:
                os.pwrite(descriptor, _encoded(content), 0)
            finally:
                os.close(descriptor)


@dataclass
class Leases:
    """The leases that this driver holds or watches; held ones are kept alive by a thread."""

    held: dict[Path, Lease | BucketLease] = field(default_factory=dict)
    _seen: dict[Path, tuple[bytes, float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self, folder: Path) -> bool:
        """Try to own `folder`, which is created. False: another driver that seems alive owns it; ask again later."""
        make_folder(folder)
        mirror = mirror_of(folder)
        lease = self._take(folder) if mirror is None else self._take_behind_url(mirror, folder)
        if lease is None:
            return False
        with self._lock:
            self.held[folder] = lease
            self._seen.pop(folder, None)
        # Only now: the thread must not beat a lease that may still turn out to be another's.
        self._keep_alive()
        return True

    def _take(self, folder: Path) -> Lease | None:
        try:
            with store_errors(folder, "take the lease of"):
                last = _last_number(folder)
                # The last number is read once, for the look and for the creation: if another driver creates one
                # between, ours fails to be created, or finds a higher one beside it.
                if last and self._seems_alive(folder, last):
                    return None
                return _create(folder, last + 1)
        except StoreError:
            if folder.exists():
                raise
            return None  # `distill clean` took it away since it was made

    def _take_behind_url(self, mirror: Mirror, folder: Path) -> BucketLease | None:
        lease = take_lease(
            mirror, folder, _owner(), lambda content: self._moves(folder, content, BUCKET_PATIENCE)
        )
        if lease is not None and folder.parent.parent == mirror.root:
            RemoteStage(mirror, folder).refresh()  # whoever had it may have finished it
        return lease

    def is_ours(self, folder: Path) -> bool:
        """Whether we own `folder`, and nobody took it over."""
        lease = self.held.get(folder)
        return lease is not None and lease.is_ours()

    def release(self, folder: Path) -> None:
        """Give one lease up, if it is held."""
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
            for folder in list(self.held):
                with self._lock:  # a lease that is released must not be revived by a late beat
                    lease = self.held.get(folder)
                    if lease is not None:
                        lease.beat()
                if isinstance(lease, BucketLease):
                    lease.look()

    def _seems_alive(self, folder: Path, number: int) -> bool:
        try:
            content = _path(folder, number).read_bytes()
        except FileNotFoundError:
            return True  # replaced by a successor between two looks
        return self._moves(folder, content, PATIENCE)

    def _moves(self, folder: Path, content: bytes, patience: float) -> bool:
        """Whether the owner whose file says `content` seems alive."""
        if _is_over(content):
            return False
        seen, since = self._seen.get(folder, (None, 0.0))
        # The count moved since our last look, by our clock and no matter what theirs says.
        if seen != content:
            self._seen[folder] = (content, time.monotonic())
            return True
        return time.monotonic() - since <= patience


def is_held(folder: Path) -> bool:
    """Whether somebody owns `folder`, as far as one look tells: an owner on another machine may be dead."""
    if (mirror := mirror_of(folder)) is not None:
        content = read_lease(mirror, folder)
        return content is not None and not _is_over(content)
    try:
        last = _last_number(folder)
        return last > 0 and not _is_over(_path(folder, last).read_bytes())
    except FileNotFoundError:  # a successor took it over between two looks, or the folder is gone
        return folder.exists()
    except OSError:  # nothing that can be read: who does not know leaves it alone
        return True


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease-{number}.json"


def _numbers(folder: Path) -> set[int]:
    """The leases that are there. A listing that is made while one file comes and another goes may have neither, and the
    last number must not be missed: only what was listed twice counts."""
    found = _listed(folder)
    while (again := _listed(folder)) != found:
        found = again
    return found


def _listed(folder: Path) -> set[int]:
    return {int(match[1]) for name in os.listdir(folder) if (match := LEASE.fullmatch(name))}  # noqa: PTH208 - 5 × faster


def _last_number(folder: Path) -> int:
    """The number of the last lease; 0 before the first."""
    return max(_numbers(folder), default=0)


def _create(folder: Path, number: int) -> Lease | None:
    """Create the lease that follows the last one; None when somebody else was faster."""
    content = _owner()
    path = _path(folder, number)
    try:
        # The one step that only one can take, also on NFS since version 3; a rename would replace the other's file.
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    try:
        os.pwrite(descriptor, _encoded({**content, "count": 0}), 0)
    finally:
        os.close(descriptor)
    numbers = _numbers(folder)
    if max(numbers, default=0) > number:
        # While we thought the one before was the last, others had this number, gave it up, and deleted it.
        path.unlink(missing_ok=True)
        return None
    for older in numbers:
        if older < number:
            _path(folder, older).unlink(missing_ok=True)
    return Lease(folder, number, content)


def _owner() -> dict[str, object]:
    return {"owner": uuid.uuid4().hex, "machine": _machine(), "pid": os.getpid()}


def _is_over(content: bytes) -> bool:
    """Whether the owner said so, or its process is gone from this machine."""
    try:
        owner = parse_json(content)
        if owner == RELEASED:
            return True
        return owner["machine"] == _machine() and _is_gone(owner["pid"])
    except (ValueError, KeyError, TypeError):
        return False  # torn or foreign: let patience decide


def _is_gone(pid: int) -> bool:
    # A new process may have taken the number: that costs `PATIENCE`, while its age would depend on the clock.
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@lru_cache(maxsize=1)
def _machine() -> str:
    """A name for this machine's process numbers: containers may share the host's name, but not its process numbers."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no file, but an inode number
    except OSError:  # not Linux
        numbering = ""
    return f"{socket.gethostname()} {numbering}".strip()


def _encoded(content: dict[str, object]) -> bytes:
    return json_line(content).encode().ljust(LENGTH)
