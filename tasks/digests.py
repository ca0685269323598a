"""SHA-256 of what files hold, so that equal data has one identity wherever it lies and however it is packed.

A digest is remembered beside the file's `Stamp`, so that a second look at a million pictures costs a `stat` each and
no reading. Like git, we do not trust a stamp that was young when the file was read: what is written within the same
tick of the clock afterwards would not change it.
"""

import gzip
import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

from raydistill.tasks.task import data_root

Stamp = tuple[int, int, int, int]
Remembered = dict[str, tuple[Stamp, str]]

YOUNG_SECONDS = 2.0  # the coarsest clock of a file system in use, FAT's
THREADS = 16  # hashing frees the interpreter's lock, and network file systems answer late
FILES_AT_ONCE = 4096
WORTH_FILES, WORTH_BYTES = 200, 4 << 20  # less than this is read as fast as what we remember of it

logger = logging.getLogger(__name__)


def digest_files(files: Mapping[str, Path]) -> str:
    """One digest over named files: depends on the names given here and the content, not on the paths or on gzip."""
    return digest_named({name: digest_file(path) for name, path in files.items()})


def digest_named(digests: Mapping[str, str]) -> str:
    """One digest over named digests, whatever their order."""
    return digest_text("".join(f"{name} {digests[name]}\n" for name in sorted(digests)))


def digest_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def digest_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, unpacked first when its name ends in `.gz`."""
    return digest_below(path.parent, (path.name,))[path.name]


def digest_below(folder: Path, names: Collection[str]) -> dict[str, str]:
    """`digest_file` of each file, by its path below `folder`. What is remembered is not read again.

    `OSError` when a file is not there or cannot be read; `ValueError` when it cannot be unpacked.
    """
    folder, began = folder.absolute(), time.time()
    known = _remembered(_memory_file(folder))
    stamps = {name: stamp(folder / name) for name in names}
    digests = {name: digest for name in stamps if (digest := _digest_at(known, name, stamps[name]))}
    unknown = [name for name in stamps if name not in digests]
    try:
        for name, digest in _read_all(folder, unknown):
            digests[name] = digest
    finally:  # an interrupted look at a large folder need not begin again
        read = {name: (stamps[name], digests[name]) for name in unknown if name in digests}
        _remember(folder, {name: entry for name, entry in read.items() if not _is_young(entry[0], began)})
    return digests


def remembered_of(file: Path, options: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` makes of a file's content and of `options`, as JSON; remembered if the file is large."""
    if stamp(file)[0] < WORTH_BYTES:
        return compute()
    key = f"{digest_file(file)} {options}"
    place = data_root() / "digests" / f"{digest_text(key)[:24]}.json"
    try:
        found: dict[str, Any] = json.loads(place.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = compute()
        _write(place, {key: found})
    return found


def stamp(path: Path) -> Stamp:
    """What changes when a file does: size in bytes, times of change in nanoseconds, inode.

    The second time is the file system's own: nobody can set it back, as copying programs do with the first.
    """
    return stamp_from(path.stat())


def stamp_of_file(path: Path) -> Stamp | None:
    """The stamp of a file; None where there is none, or a folder."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return stamp_from(status) if S_ISREG(status.st_mode) else None


def stamp_from(status: os.stat_result) -> Stamp:
    """The stamp that a look at a file gives."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read_all(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(names) >= WORTH_FILES:
        logger.info("reading %d files in `%s` once, to know them again", len(names), folder)
    with ThreadPoolExecutor(THREADS) as executor:
        for start in range(0, len(names), FILES_AT_ONCE):
            part = names[start : start + FILES_AT_ONCE]
            yield from zip(part, executor.map(_read, [folder / name for name in part]), strict=True)


def _read(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"`{path}` is damaged: {error}") from error


def _digest_at(known: Remembered, name: str, now: Stamp) -> str | None:
    then, digest = known.get(name, (None, None))
    return digest if then == now else None


def _is_young(then: Stamp, now: float) -> bool:
    return max(then[1:3]) > (now - YOUNG_SECONDS) * 1e9


def _remember(folder: Path, read: Remembered) -> None:
    """Remember a digest in this process; also on the disk, if the file is large enough for reading it to take time."""
    place = _memory_file(folder)
    known = _remembered(place)
    known.update(read)
    if len(read) >= WORTH_FILES or sum(then[0] for then, _ in read.values()) >= WORTH_BYTES:
        # Of processes that write at once the last one wins, which only costs time.
        both = (_load(place) | known).items()
        there = {name: entry for name, entry in both if name in read or (folder / name).exists()}
        files = {name: (*then, digest) for name, (then, digest) in there.items()}
        _write(place, {"folder": str(folder), "files": files})


def _memory_file(folder: Path) -> Path:
    return data_root() / "digests" / f"{digest_text(str(folder))[:24]}.json"


@lru_cache(maxsize=64)
def _remembered(place: Path) -> Remembered:
    """What this process knows of a folder's files: read from the disk once, then kept up to date here."""
    return _load(place)


def _load(place: Path) -> Remembered:
    """What the disk knows; nothing when it is not there or damaged, which only costs time."""
    try:
        files = json.loads(place.read_bytes())["files"]
        return {name: (_stamp_of(then), str(digest)) for name, (*then, digest) in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _stamp_of(numbers: Sequence[int]) -> Stamp:
    size, modified, changed, inode = numbers
    return size, modified, changed, inode


def _write(place: Path, values: Mapping[str, Any]) -> None:
    """Replace a file whole; what cannot be written is not remembered."""
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(values, separators=(",", ":")), encoding="utf-8")
        temporary.replace(place)
    except OSError as error:
        logger.debug("digests are not remembered in `%s`: %s", place, error)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
