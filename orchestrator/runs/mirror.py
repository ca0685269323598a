"""A storage root behind a URL, as one machine sees it: a folder with the same files, of which each is there once
somebody here wrote or needed it.

The object store is the truth. What is written here is sent there, the record of a stage last; what others wrote is
brought here when it is asked for, and checked. All processes of a machine share the folder, and no two machines need
to: nothing depends on renames, locks or listings that other machines see.

Everybody else works with the folder: `open_storage` gives it for a URL, and for a folder that folder itself. `send` and
`bring` do nothing where all machines see the files anyway.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

from raydistill.errors import StoreError
from raydistill.runs.bucket import Bucket, Entry, is_url
from raydistill.runs.files import json_text, make_folder, read_json, replaced_file, write_json

CACHE = "RAYDISTILL_CACHE"
ORIGIN = ".raydistill-origin.json"  # beside the mirror's root: where it is a mirror of
AT_ONCE = 8  # requests side by side
FRESH_SECONDS = 3.0
LOCK_TRIES, LOCK_SECONDS = 10, 0.05

Item = TypeVar("Item")
Result = TypeVar("Result")

_readers: dict[Path, int] = {}  # descriptors of the locks that say: what was fetched is being read


def open_storage(storage: str | Path) -> Path:
    """The storage root as a folder of this machine: of a URL its mirror, which is made. Nothing is transferred."""
    if not is_url(str(storage)):
        return Path(storage)
    url = str(storage).rstrip("/")
    root = _home(url) / "runs"
    if mirror_at(root) is None:
        Bucket(url)  # a wrong URL is told before a folder is made for it
        make_folder(root)
        write_json(root.parent / ORIGIN, {"url": url})
        mirror_at.cache_clear()
    return root


def storage_name(root: Path) -> str:
    """The storage root as every machine can open it."""
    mirror = mirror_at(root)
    return str(root) if mirror is None else mirror.bucket.url


def url_of(root: Path) -> str | None:
    """The URL that a storage root lies behind; None for a folder."""
    mirror = mirror_at(root.absolute())
    return None if mirror is None else mirror.bucket.url


def send(path: Path) -> None:
    """Let other machines see a file, or the files of a folder that changed since they were sent."""
    if (mirror := mirror_of(path)) is not None:
        mirror.send(path)


def bring(path: Path) -> None:
    """See what other machines wrote into a file."""
    if (mirror := mirror_of(path)) is not None:
        mirror.bring(path)


def bring_all(folder: Path, names: Collection[str] = ()) -> None:
    """See what other machines wrote below a folder, or into the files with these names."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.bring_all(folder, names)


def glance(path: Path) -> None:
    """As `bring` of one file that is not here, by a look at its folder some seconds ago: for who looks often."""
    if (mirror := mirror_of(path)) is not None and not path.is_file():
        if not mirror.is_fresh(path.parent):
            mirror.listing(path.parent)
        if (entry := mirror.listed(path.parent).get(path.name)) is not None:
            mirror.bring_file(path, entry)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, for other machines; it is still here."""
    if (mirror := mirror_of(path)) is not None:
        mirror.remove(path)


def mirror_of(path: Path) -> "Mirror | None":
    """The mirror that a path lies in; None for a path that is what it says."""
    return next((mirror for parent in path.parents if (mirror := mirror_at(parent)) is not None), None)


@lru_cache(maxsize=4096)
def mirror_at(root: Path) -> "Mirror | None":
    """The mirror with this root."""
    origin = root.parent / ORIGIN
    if root.name != "runs" or not origin.is_file():
        return None
    url = str(read_json(origin)["url"])
    # Elsewhere such a file came with something received: nobody is to be connected to a place that it names.
    return Mirror(root, url) if root.parent.resolve() == _home(url).resolve() else None


def release_readers() -> None:
    """What this process fetched is not needed any more: it may make room for other things."""
    while _readers:
        os.close(_readers.popitem()[1])


def _home(url: str) -> Path:
    cache = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "raydistill")
    readable = re.sub(r"[^\w.]+", "-", url).strip("-")[-60:]
    return cache.absolute() / "storage" / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


class Mirror:
    """One machine's copy of a storage root, and the way to the original."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.bucket = root, Bucket(url)
        self._sent: dict[Path, tuple[int, int]] = {}
        self._listed: dict[Path, tuple[float, dict[str, Entry]]] = {}

    def key(self, path: Path) -> str:
        """The object's key of a file."""
        return path.relative_to(self.root).as_posix()

    def listing(self, folder: Path) -> dict[str, Entry]:
        """The objects below a folder, by their names below it, as they are now."""
        prefix = f"{self.key(folder)}/"
        found = self.bucket.listing(prefix)
        entries = {key.removeprefix(prefix): entry for key, entry in found.items()}
        self._listed[folder] = (time.monotonic(), entries)
        return entries

    def listed(self, folder: Path) -> dict[str, Entry]:
        """As `listing` was when it was last asked for."""
        return self._listed[folder][1] if folder in self._listed else self.listing(folder)

    def is_fresh(self, folder: Path) -> bool:
        """Whether a folder was listed some seconds ago at most."""
        return folder in self._listed and time.monotonic() - self._listed[folder][0] < FRESH_SECONDS

    def folders(self, place: Path) -> list[Path]:
        """The folders in a folder that anybody wrote to."""
        return [place / name for name in self.bucket.folders(f"{self.key(place)}/")]

    def send(self, path: Path) -> None:
        """A file, or what changed below a folder since this process sent it. Temporary files stay."""
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        side_by_side(self.send_file, [file for file in files if not _is_hidden(file.relative_to(path))])

    def send_file(self, path: Path) -> None:
        """A file, if it changed since this process sent it."""
        try:
            status = path.stat()
        except FileNotFoundError:  # replaced or removed meanwhile
            return
        stamp = (status.st_size, status.st_mtime_ns)
        if self._sent.get(path) != stamp:
            with suppress(FileNotFoundError):
                self.note(path, self.bucket.write(self.key(path), path))
                self._sent[path] = stamp

    def bring(self, path: Path) -> None:
        """A file, if it is another than was brought before."""
        if (entry := self.bucket.entry(self.key(path))) is not None:
            self.bring_file(path, entry)

    def bring_all(self, folder: Path, names: Collection[str]) -> None:
        """The files below a folder, if they are others than were brought before; of these `names`, if there are any."""
        wanted = {
            folder / name: entry
            for name, entry in self.listing(folder).items()
            if is_below(name) and (not names or PurePosixPath(name).name in names)
        }
        side_by_side(lambda file: self.bring_file(file, wanted[file]), wanted)

    def bring_file(self, path: Path, entry: Entry) -> bool:
        """One file; returns whether it is another than before."""
        if self._tag(path) == entry.e_tag and path.is_file():
            return False
        make_folder(path.parent)
        if not self.bucket.download(self.key(path), path):
            return False
        self.note(path, entry.e_tag)
        return True

    def remove(self, path: Path) -> None:
        """The object of a file, and those below a folder."""
        key = self.key(path)
        self.bucket.delete([key, *(f"{key}/{name}" for name in self.listing(path))])
        for folder in (path, path.parent):
            self._listed.pop(folder, None)

    def upload(self, files: Iterable[Path]) -> None:
        """Files that never change, whatever is there."""
        side_by_side(lambda file: self.bucket.write(self.key(file), file), files)

    def note(self, path: Path, e_tag: str) -> None:
        """Remember which state of the object a file is."""
        file = self._tags_file(path)
        make_folder(file.parent)
        with self.locked(file.with_suffix(".lock")), replaced_file(file) as temporary:
            temporary.write_text(json_text({**self._tags(path), path.name: e_tag}), encoding="utf-8")

    def _tag(self, path: Path) -> str | None:
        return self._tags(path).get(path.name)

    def _tags(self, path: Path) -> Mapping[str, str]:
        with suppress(StoreError):
            return dict(read_json(self._tags_file(path)))
        return {}

    def _tags_file(self, path: Path) -> Path:
        return self.root.parent / "tags" / path.parent.relative_to(self.root) / "tags.json"

    @contextmanager
    def locked(self, file: Path) -> Iterator[None]:
        """Be the only process of this machine that does something."""
        descriptor = _opened(file)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def busy(self, folder: Path) -> Iterator[None]:
        """A process of this machine writes to a folder: what is there is later than what was sent."""
        descriptor = _opened(self._lock_file(folder, "busy"))
        try:
            for _ in range(LOCK_TRIES):
                # Whoever asks `is_busy` holds it for a moment; an earlier attempt that has not ended, for long.
                if _locks(descriptor):
                    break
                time.sleep(LOCK_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def is_busy(self, folder: Path) -> bool:
        """Whether a process of this machine writes to a folder."""
        file = self._lock_file(folder, "busy")
        if not file.exists():  # of most stages of a large root
            return False
        with self._free(file) as is_free:
            return not is_free

    def read_from(self, folder: Path) -> None:
        """Keep what is fetched of a folder until `release_readers`."""
        file = self._lock_file(folder, "read")
        if file not in _readers:
            descriptor = _opened(file)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _readers[file] = descriptor
        os.utime(_readers[file])

    @contextmanager
    def unread(self, folder: Path) -> Iterator[bool]:
        """Whether no process of this machine reads what was fetched of a folder; if so none begins to meanwhile."""
        with self._free(self._lock_file(folder, "read")) as is_free:
            yield is_free

    def last_read(self, folder: Path) -> float:
        """When somebody here last began to: seconds since 1970."""
        with suppress(OSError):
            return self._lock_file(folder, "read").stat().st_mtime
        return 0.0

    def fetching(self, folder: Path) -> AbstractContextManager[None]:
        """One process of this machine fetches from a folder, the others wait and find it done."""
        return self.locked(self._lock_file(folder, "fetch"))

    @contextmanager
    def _free(self, file: Path) -> Iterator[bool]:
        descriptor = _opened(file)
        try:
            yield _locks(descriptor)
        finally:
            os.close(descriptor)

    def _lock_file(self, folder: Path, what: str) -> Path:
        return self.root.parent / "locks" / folder.relative_to(self.root) / what


def is_below(name: str) -> bool:
    """Whether a name, which anybody may have given an object, leads to a place below where it is put."""
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in name


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results of several requests at a time, in their order; the first error is raised."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


def _locks(descriptor: int) -> bool:
    """Take the lock on an open file, unless another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(file: Path) -> int:
    make_folder(file.parent)
    return os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
