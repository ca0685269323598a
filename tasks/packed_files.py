"""Files of packed pictures as others see them: who uses one, when it was last used, and taking one away.

Needs no decoder: whoever cleans up waits for it. Whoever reads a file holds a shared lock beside it until its process
ends; a lock ends with its process, however that ends.
"""

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

PACKED_FOLDER = "packed"  # below the data root, where a task names no other
PACKED_FILE = re.compile(r"\.?[a-z][a-z0-9_]*-[0-9a-f]{16}\.pixels(\.partial)?")

_used: dict[Path, int] = {}  # descriptors of the locks that this process holds


def use(file: Path) -> None:
    """Say that this process reads, or makes, a file of packed pictures: nobody takes it away before it ends."""
    beside = _lock_of(file, "used")
    if beside not in _used:
        descriptor = os.open(beside, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _used[beside] = descriptor
    with suppress(OSError):  # of another user
        os.utime(_used[beside])


def lock_of_maker(file: Path) -> Path:
    """What the one process that makes a file locks meanwhile."""
    return _lock_of(file, "lock")


def partial_of(file: Path) -> Path:
    """Where a file lies until it is whole."""
    return file.with_name(f".{file.name}.partial")


def last_used(file: Path) -> float:
    """When a file, whole or not, was last written, read, or opened by whoever reads it: seconds since 1970."""
    times = [0.0]
    with suppress(OSError):
        status = file.lstat()
        times += [status.st_mtime, status.st_atime]
    with suppress(OSError):
        times.append(_lock_of(_whole(file), "used").stat().st_mtime)
    return max(times)


def take_away(file: Path) -> bool:
    """Delete a file, whole or not, unless somebody on this machine uses or makes it; returns whether it is gone.

    The locks' own files stay: of one that was deleted two processes could hold two.
    """
    descriptors = [
        os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        for lock in (_lock_of(_whole(file), "used"), lock_of_maker(_whole(file)))
    ]
    try:
        for descriptor in descriptors:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _whole(file: Path) -> Path:
    return file.with_name(file.name.removeprefix(".").removesuffix(".partial"))


def _lock_of(file: Path, what: str) -> Path:
    return file.with_name(f".{file.name}.{what}")
