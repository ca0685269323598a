"""A lease behind a URL: one object beside a stage's files, created where none is, else swapped for its last state.

Of two that want it at once, one is told that the other was faster.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from raydistill.errors import StoreError
from raydistill.runs.bucket import Tag
from raydistill.runs.files import json_line, parse_json
from raydistill.runs.mirror import Mirror
from raydistill.runs.remote_stage import RemoteStage
from raydistill.runs.stage_files import LEASE_OBJECT

RELEASED: dict[str, object] = {"released": True}
BEAT_SECONDS = 10.0
# Nobody takes it before the count stood still for far longer: until then a beat that arrived says enough.
SURE_SECONDS = 30.0


class BucketLease:
    """A held lease. `beat` regularly; `is_ours` tells whether it was lost."""

    def __init__(self, mirror: Mirror, folder: Path, content: dict[str, object], tag: Tag) -> None:
        self.mirror, self.folder = mirror, folder
        self._content, self._tag = content, tag
        self._count, self._is_lost = 0, False
        self._beaten = self._looked = time.monotonic()

    def beat(self) -> None:
        """Show that we live, if it is time."""
        if self._is_lost or time.monotonic() - self._beaten < BEAT_SECONDS:
            return
        self._count += 1
        with suppress(StoreError):  # a beat missed; the next one tells
            self._swap({**self._content, "count": self._count})

    def look(self) -> None:
        """See how far the stage is that runs elsewhere, if it is time."""
        is_stage = self.folder.parent.parent == self.mirror.root
        if is_stage and time.monotonic() - self._looked >= BEAT_SECONDS:
            self._looked = time.monotonic()
            with suppress(StoreError):  # the news comes later
                RemoteStage(self.mirror, self.folder).refresh()

    def is_ours(self) -> bool:
        """False once another driver took the folder over."""
        if not self._is_lost and time.monotonic() - self._beaten > SURE_SECONDS:
            try:
                content = read_lease(self.mirror, self.folder)
            except StoreError:
                return False
            self._is_lost = content is None or not self._is_own(content)
        return not self._is_lost

    def release(self) -> None:
        """Give the lease up. The object stays, and says so."""
        with suppress(StoreError):  # others wait until the count has stood still
            self._swap(RELEASED)

    def _swap(self, content: dict[str, object]) -> None:
        key = self.mirror.key(self.folder / LEASE_OBJECT)
        tag = self.mirror.bucket.swap(key, json_line(content).encode(), self._tag, hasty=True)
        if tag is None:
            held = self.mirror.bucket.read(key)
            # A beat whose answer was lost is there all the same.
            if held is None or not self._is_own(held.content):
                self._is_lost = True
                return
            tag = held.tag
        self._tag, self._beaten = tag, time.monotonic()

    def _is_own(self, content: bytes) -> bool:
        with suppress(ValueError, KeyError, TypeError):
            return bool(parse_json(content)["owner"] == self._content["owner"])
        return False


def take_lease(
    mirror: Mirror, folder: Path, owner: dict[str, object], seems_alive: Callable[[bytes], bool]
) -> BucketLease | None:
    """The lease on a folder, if nobody has it or whoever does `seems_alive` no longer, and nobody else is faster."""
    key, content = mirror.key(folder / LEASE_OBJECT), json_line({**owner, "count": 0}).encode()
    held = mirror.bucket.read(key)
    if held is None:
        tag = mirror.bucket.create(key, content)
    elif seems_alive(held.content):
        return None
    else:
        tag = mirror.bucket.swap(key, content, held.tag)
    return None if tag is None else BucketLease(mirror, folder, owner, tag)


def read_lease(mirror: Mirror, folder: Path) -> bytes | None:
    """What the lease on a folder says; None where there never was one."""
    held = mirror.bucket.read(mirror.key(folder / LEASE_OBJECT))
    return None if held is None else held.content
