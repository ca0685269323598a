"""Pictures decoded once and scaled, in one file that all processes on a machine read from its page cache.

The file is made by whoever comes first; others wait, and go on where it was left when that one is killed. Its name is a
digest of what the pictures hold and of how they are scaled, and it takes that name when it is whole: an index, and the
pixels of one picture after the other. Each has a checksum, at which a process looks when it first reads the picture.
Pixels are not encoded again: what is read is what scaling the picture's own file would give, to the last bit.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raydistill.tasks.digests import Stamp, stamp
from raydistill.tasks.packed_files import lock_of_maker, partial_of, use
from raydistill.tasks.pictures import PictureError, Wanted

if TYPE_CHECKING:
    from raydistill.tasks.picture_store import PictureStore

ROW = np.dtype(
    [("offset", "<i8"), ("width", "<i4"), ("height", "<i4"), ("checksum", "<u4"), ("unused", "<u4")]
)
"""Of one picture. Its offset is 0 before it is there, and `UNREADABLE` where there is none."""

UNREADABLE = -1
AT_ONCE = 256
TELL_SECONDS = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedFile:
    """A whole file of `count` pictures; places are rows."""

    file: Path
    count: int

    def read_part(self, place: int, channels: int, wanted: Wanted) -> Image.Image:
        """The picture as it was scaled when the file was made, which is what is `wanted` of it."""
        assert channels == 3
        return _open(self.file, self.count, stamp(self.file)).read(place)


def packed(
    file: Path, store: PictureStore, places: NDArray[Any], wanted: Wanted, *, threads: int, skip: bool
) -> PackedFile:
    """What is `wanted` of the pictures at `places` (N,), in colour, in their order, in `file`, made unless it is there.

    `PictureError` names the first picture that cannot be read, unless such are to be skipped. `ValueError` in one line
    says why the file cannot be made.
    """
    whole = PackedFile(file, len(places))
    with _told(file):
        use(file)
    if _is_whole(whole):
        return whole
    with _told(file), _locked(lock_of_maker(file)):
        if not _is_whole(whole):
            _make(whole, _Packing(store, places, wanted, threads, skip))
    return whole


@dataclass(frozen=True)
class _Packing:
    store: PictureStore
    places: NDArray[Any]
    wanted: Wanted
    threads: int
    skip: bool

    def pictures(self, start: int) -> Iterator[list[NDArray[np.uint8] | None]]:
        """Pixels (H, W, 3) of pictures from the place `start` on, a few at a time; None where they cannot be read."""
        with ThreadPoolExecutor(max(self.threads, 1)) as executor:
            for first in range(start, len(self.places), AT_ONCE):
                yield list(executor.map(self._picture, self.places[first : first + AT_ONCE].tolist()))

    def _picture(self, place: Any) -> NDArray[np.uint8] | None:
        try:
            return np.asarray(self.store.read_part(place, 3, self.wanted))
        except PictureError:
            if self.skip:
                return None
            raise


def _is_whole(packed: PackedFile) -> bool:
    """Whether the file is there; one of another length is removed."""
    try:
        size = packed.file.stat().st_size
    except OSError:
        return False
    with packed.file.open("rb") as stream:
        if size == _end_of(_read_index(stream, packed.count)):
            return True
    logger.warning("`%s` is damaged, and made again", packed.file)
    packed.file.unlink(missing_ok=True)
    return False


def _make(packed: PackedFile, packing: _Packing) -> None:
    count, partial = packed.count, partial_of(packed.file)
    partial.touch()
    with partial.open("r+b") as stream:
        index, done = _resumed(stream, count)
        doing = f"going on at {done}" if done else "once"
        logger.info("packing %d pictures into `%s`, %s", count, packed.file, doing)
        began = time.monotonic()
        try:
            for pictures in packing.pictures(done):
                _append(stream, index, done, pictures)
                done += len(pictures)
                _check_room(partial, index, done)
                if time.monotonic() - began > TELL_SECONDS:
                    logger.info("packed %d of %d pictures", done, count)
                    began = time.monotonic()
            stream.flush()
            os.fsync(stream.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                partial.unlink()  # others want the room, too
            raise
    partial.replace(packed.file)


def _append(
    stream: IO[bytes], index: NDArray[Any], first: int, pictures: list[NDArray[np.uint8] | None]
) -> None:
    end = _end_of(index[:first], len(index))
    stream.seek(end)
    for row, pixels in zip(index[first:], pictures, strict=False):
        if pixels is None:
            row["offset"] = UNREADABLE
            continue
        content = pixels.tobytes()
        stream.write(content)
        row["offset"], row["height"], row["width"] = end, *pixels.shape[:2]
        row["checksum"] = zlib.crc32(content)
        end += len(content)
    stream.flush()
    # After the pixels: what the index names is there, whenever this process is killed.
    stream.seek(first * ROW.itemsize)
    stream.write(index[first : first + len(pictures)].tobytes())
    stream.flush()


def _resumed(stream: IO[bytes], count: int) -> tuple[NDArray[Any], int]:
    """The index of an unfinished file, and how many pictures are in it as they should be."""
    index = _read_index(stream, count)
    done = 0
    for row in index:
        if not row["offset"] or not (row["offset"] == UNREADABLE or _is_intact(stream, row)):
            break
        done += 1
    index[done:] = 0
    stream.seek(0)
    stream.write(index.tobytes())
    stream.truncate(_end_of(index[:done], count))
    return index, done


def _is_intact(stream: IO[bytes], row: Any) -> bool:
    stream.seek(int(row["offset"]))
    return zlib.crc32(stream.read(_size_of(row))) == row["checksum"]


def _read_index(stream: IO[bytes], count: int) -> NDArray[Any]:
    """The rows that a file begins with; zero where it is shorter."""
    content = stream.read(count * ROW.itemsize)
    return np.frombuffer(content.ljust(count * ROW.itemsize, b"\0"), ROW).copy()


def _size_of(rows: Any) -> Any:
    return rows["width"].astype(np.int64) * rows["height"] * 3


def _end_of(index: NDArray[Any], count: int | None = None) -> int:
    """The length of a file with these pictures, of an index of `count`."""
    return (len(index) if count is None else count) * ROW.itemsize + int(_size_of(index).sum())


def _check_room(partial: Path, index: NDArray[Any], done: int) -> None:
    """Tell at once what would fill the disk in an hour."""
    per_picture = int(_size_of(index[:done]).sum()) / done
    missing, free = per_picture * (len(index) - done), shutil.disk_usage(partial.parent).free
    if missing > free:
        raise OSError(
            errno.ENOSPC,
            f"{len(index)} pictures take about {per_picture * len(index) / 1e9:.1f} GB, and {free / 1e9:.1f} are free",
        )


@contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"pictures cannot be packed into `{file}`: {reason}; free some room, name another `folder` in `cache`, or"
            " leave `cache` out"
        ) from error


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time; a lock ends with the process that holds it, however that ends."""
    with file.open("wb") as stream:
        with suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
            return
        logger.info("waiting for another process, which packs pictures (`%s`)", file)
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class _Opened:
    def __init__(self, file: Path, count: int) -> None:
        self.file = file
        self.content: NDArray[np.uint8] = np.memmap(file, np.uint8, mode="r")
        self.index = self.content[: count * ROW.itemsize].view(ROW)
        self.is_checked = np.zeros(count, dtype=bool)

    def read(self, place: int) -> Image.Image:
        row = self.index[place]
        start, (width, height) = int(row["offset"]), (int(row["width"]), int(row["height"]))
        pixels = self.content[start : start + width * height * 3]
        if not self.is_checked[place]:
            if start <= 0 or zlib.crc32(pixels.data) != row["checksum"]:
                raise PictureError(f"`{self.file}` is damaged: delete it, it is made again")
            self.is_checked[place] = True
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)


@lru_cache(maxsize=4)
def _open(file: Path, count: int, changed: Stamp) -> _Opened:
    return _Opened(file, count)
