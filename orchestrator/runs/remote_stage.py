"""A stage's folder behind a URL: what is sent when, what is brought when, and checked.

The record is put last and withdrawn first, so whoever finds one finds all that it speaks of. While a stage runs, its
metrics, log and last checkpoint follow every few seconds: another machine goes on from there.
"""

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raydistill.errors import StoreError
from raydistill.runs.files import make_folder, read_json, sha256_file, write_json
from raydistill.runs.mirror import Mirror, bring_all, is_below, mirror_at, mirror_of, side_by_side
from raydistill.runs.stage_files import (
    ATTEMPT,
    CHECKPOINT,
    CHECKPOINT_STATE,
    CONFIG,
    LEASE_OBJECT,
    LOG,
    METRICS,
    PLACES,
    RECORD,
    STAMPS,
)

SECONDS_BETWEEN = 10.0  # what a machine that dies had learnt since is learnt again
LIVE = (CONFIG, METRICS, LOG)
OF_THE_UNFINISHED = (f"{CHECKPOINT}/", "claims/")
LIMIT = "RAYDISTILL_CACHE_GB"
LIMIT_GB = 200.0
FETCHED = "fetched.json"  # among the mirror's locks: files that were found whole, and their sizes and times

log = logging.getLogger("raydistill")


def remote_stage(path: Path) -> "RemoteStage | None":
    """Where a stage's folder is a copy of; None for a folder that all machines share."""
    mirror = mirror_of(path)
    return None if mirror is None else RemoteStage(mirror, path)


def refresh_stages(folders: Iterable[Path]) -> None:
    """See what other machines made of these stages."""
    if wanted := [stage for folder in folders if (stage := remote_stage(folder)) is not None]:
        side_by_side(RemoteStage.refresh, wanted)


def refresh_root(root: Path) -> None:
    """See all that other machines did below a storage root, but for payload and what nobody there has any more."""
    if (mirror := mirror_at(root)) is None:
        return
    for place in ("plans", "searches", "tasks"):
        bring_all(root / place)
    there = mirror.folders(root / "stages")
    here = [path for path in (root / "stages").glob("*") if path.is_dir()]
    for folder in set(here) - set(there):
        if not mirror.is_busy(folder):
            shutil.rmtree(folder, ignore_errors=True)
    refresh_stages(there)


class RemoteStage:
    """The objects of one stage, and this machine's copies of them."""

    def __init__(self, mirror: Mirror, path: Path) -> None:
        self.mirror, self.path = mirror, path
        self._follower: _Follower | None = None

    def refresh(self) -> None:
        """Bring all but the payload up to date with what other machines wrote; the record last."""
        objects = self.mirror.listing(self.path)
        if self.mirror.is_busy(self.path):  # what is here is what will be there
            return
        if RECORD not in objects:
            for name in (RECORD, STAMPS):
                (self.path / name).unlink(missing_ok=True)
        names = [name for name in objects if name in (*LIVE, ATTEMPT) or PLACES.fullmatch(name)]
        for name in [*names, *(name for name in (RECORD,) if name in objects)]:
            self.mirror.bring_file(self.path / name, objects[name])

    def missing(self, payload: Iterable[str]) -> str | None:
        """Name the first payload file of which there is no object; as of the last look."""
        objects = self.mirror.listed(self.path)
        missing = next((name for name in payload if name not in objects), None)
        return None if missing is None else f"`{self._url(missing)}` is missing"

    def fetch(self, payload: Mapping[str, str]) -> None:
        """Have these files here, by their SHA-256; each is transferred once to a machine. `StoreError` names an object
        that is damaged, and withdraws the record: the stage is made anew by the next run."""
        self.mirror.read_from(self.path)
        with self.mirror.fetching(self.path):
            known = self._fetched()
            wanted = {name: sha for name, sha in payload.items() if known.get(name) != self._stamp(name, sha)}
            if not wanted:
                return
            found = side_by_side(lambda name: self._fetch_one(name, wanted[name]), wanted)
            whole = dict(zip(wanted, found, strict=True))
            fresh = {name: self._stamp(name, wanted[name]) for name, is_whole in whole.items() if is_whole}
            write_json(self._fetched_file(), {**known, **fresh})
        for name, is_whole in whole.items():
            if not is_whole:
                self.withdraw()
                raise StoreError(
                    f"`{self._url(name)}` is missing or damaged: run the plan again, its stage is made anew"
                )
        self._make_room()

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """A part of an object, as it is."""
        return self.mirror.bucket.read_range(self.mirror.key(self.path / name), start, end)

    def _fetch_one(self, name: str, sha256: str) -> bool:
        if not is_below(name):
            return False
        path = self.path / name
        if path.is_file() and sha256_file(path) == sha256:  # made here
            return True
        make_folder(path.parent)
        return self.mirror.bucket.download(self.mirror.key(path), path) and sha256_file(path) == sha256

    def _stamp(self, name: str, sha256: str) -> list[Any]:
        with suppress(OSError):
            status = (self.path / name).stat()
            return [sha256, status.st_size, status.st_mtime_ns]
        return []

    def _fetched(self) -> dict[str, Any]:
        with suppress(StoreError):
            return dict(read_json(self._fetched_file()))
        return {}

    def _fetched_file(self) -> Path:
        return self.mirror.root.parent / "locks" / self.path.relative_to(self.mirror.root) / FETCHED

    def publish(self, record: str, payload: Iterable[str]) -> None:
        """Make it a result for everybody: payload first, the record last, and what was only for those who go on is
        gone."""
        self._stop_following()
        self.mirror.upload(self.path / name for name in payload)
        for name in LIVE:
            self.mirror.send(self.path / name)
        key = self.mirror.key(self.path / RECORD)
        self.mirror.note(self.path / RECORD, self.mirror.bucket.write(key, record.encode()))
        objects = self.mirror.listing(self.path)
        if json.loads(record)["status"] == "done":
            self._delete(
                name for name in objects if name.startswith(OF_THE_UNFINISHED) or PLACES.fullmatch(name)
            )

    def withdraw(self) -> None:
        """There is no result any more."""
        self._delete([RECORD])
        (self.path / RECORD).unlink(missing_ok=True)

    def forget(self) -> None:
        """Delete all but who owns it; the record is withdrawn before."""
        self._delete(name for name in self.mirror.listing(self.path) if name not in (LEASE_OBJECT, ATTEMPT))

    def _delete(self, names: Iterable[str]) -> None:
        self.mirror.bucket.delete(f"{self.mirror.key(self.path)}/{name}" for name in names)

    @contextmanager
    def worked_on(self) -> Iterator[None]:
        """While a process of this machine makes the stage: begin at the last checkpoint that anybody sent, send what is
        new every few seconds, and once more at the end."""
        with self.mirror.busy(self.path):
            self.bring_checkpoint()
            self._follower = _Follower(self)
            try:
                yield
            finally:
                self._stop_following()
                self.send_what_can_be()  # of what is published, too: the log's last line, a checkpoint that is kept

    def bring_checkpoint(self) -> None:
        """The last checkpoint that was sent, with its metrics, unless the one here is as far."""
        folder = self.path / CHECKPOINT
        held = self.mirror.bucket.read(self.mirror.key(folder / CHECKPOINT_STATE))
        if held is None:
            return
        with (
            self.mirror.fetching(self.path),
            suppress(ValueError, KeyError, TypeError),
        ):  # damaged: from the start
            state = json.loads(held.content)
            if _step_of(folder / CHECKPOINT_STATE) >= state["progress"]["step"]:
                return
            make_folder(folder)
            tensors = folder / Path(state["tensors"]).name
            if self.mirror.bucket.download(self.mirror.key(tensors), tensors):
                self.mirror.bucket.download(self.mirror.key(self.path / METRICS), self.path / METRICS)
                (folder / CHECKPOINT_STATE).write_bytes(held.content)

    def send_progress(self) -> None:
        """Metrics, log and checkpoint, as they are now; the checkpoint's state names its tensors and comes last."""
        for name in LIVE:
            self.mirror.send(self.path / name)
        folder = self.path / CHECKPOINT
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # replaced meanwhile: next time
            state = (folder / CHECKPOINT_STATE).read_bytes()
            tensors = folder / Path(json.loads(state)["tensors"]).name
            self.mirror.send_file(tensors)
            if not tensors.exists():
                return
            self.mirror.bucket.write(self.mirror.key(folder / CHECKPOINT_STATE), state)
            current = {tensors.name, CHECKPOINT_STATE}
            old = [name for name in self.mirror.listing(folder) if name not in current]
            self.mirror.bucket.delete(f"{self.mirror.key(folder)}/{name}" for name in old)

    def send_what_can_be(self) -> None:
        """`send_progress`, and a line in the log where the store cannot be reached."""
        try:
            self.send_progress()
        except StoreError as error:
            log.warning("%s; what was learnt is safe on this machine, and sent later", error.message)

    def _stop_following(self) -> None:
        if self._follower is not None:
            self._follower.stop()
            self._follower = None

    def _url(self, name: str) -> str:
        return f"{self.mirror.bucket.url}/{self.mirror.key(self.path)}/{name}"

    def _make_room(self) -> None:
        """Drop payload that nobody here reads, the longest unread first, while there is more than the limit."""
        limit = float(os.environ.get(LIMIT) or LIMIT_GB) * 1e9
        stages = [folder for folder in self.path.parent.iterdir() if (folder / RECORD).is_file()]
        files = {folder: [folder / name for name in _payload_of(folder)] for folder in stages}
        sizes = {
            folder: sum(file.stat().st_size for file in files[folder] if file.is_file()) for folder in stages
        }
        left = sum(sizes.values())
        for folder in sorted(stages, key=self.mirror.last_read):
            if left <= limit:
                return
            with self.mirror.unread(folder) as is_unread:
                if is_unread and not self.mirror.is_busy(folder):
                    for file in files[folder]:
                        file.unlink(missing_ok=True)
                    left -= sizes[folder]


def _payload_of(folder: Path) -> list[str]:
    with suppress(StoreError, KeyError, TypeError):
        return list(read_json(folder / RECORD)["payload"])
    return []


def _step_of(state: Path) -> int:
    with suppress(StoreError, KeyError, TypeError, ValueError):
        return int(read_json(state)["progress"]["step"])
    return -1


class _Follower:
    """Sends a running stage's progress, on a thread of its own: training waits for no network."""

    def __init__(self, stage: RemoteStage) -> None:
        self._stage, self._over = stage, threading.Event()
        self._thread = threading.Thread(target=self._work, name="sending", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, once what is being sent is there."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN):
            self._stage.send_what_can_be()
