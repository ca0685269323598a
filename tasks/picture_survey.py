"""A look at every picture before anything is trained on it: which cannot be read, and which were converted and how.

A picture is decoded once, and what was seen is remembered under the data root beside the file's stamp: the second look
costs a `stat`. As in `digests.py`, the stamp of a file that has just been written is not trusted.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.tasks.digests import YOUNG_SECONDS, Stamp, digest_text
from raydistill.tasks.picture_files import HIDDEN, OF_SYSTEMS, counted
from raydistill.tasks.pictures import READER, PictureError
from raydistill.tasks.survey import FEW, Finding
from raydistill.tasks.task import data_root

if TYPE_CHECKING:
    from raydistill.tasks.picture_store import PictureStore
    from raydistill.tasks.pixel_cache import Glance

MOST = 10_000
"""Pictures of one split that a survey decodes; of more, so many are chosen by hash (4 ms each at 500 x 375)."""

WAY_OUT = "repair them, or leave them out with `on_error: skip`"
NOTES = frozenset({HIDDEN, OF_SYSTEMS})


@dataclass(frozen=True)
class Look:
    """What decoding one picture showed; `problem` says why it could not be read."""

    width: int = 0
    height: int = 0
    turned: tuple[str, ...] = ()
    digest: str = ""
    is_blank: bool = False
    problem: str | None = None


def look_at(store: PictureStore, places: Sequence[Any], threads: int) -> dict[str, Look]:
    """The `Look` of each picture by its name, in their order; only what changed since the last look is decoded."""
    memory = _memory_of(store)
    known, old = _remembered(memory), (time.time() - YOUNG_SECONDS) * 1e9
    names = [store.name(place) for place in places]
    stamps = [_stamp(store, place) for place in places]
    new = [row for row, name in enumerate(names) if name not in known or known[name][0] != stamps[row]]
    if new:
        with ThreadPoolExecutor(max(threads, 1)) as executor:
            looks = executor.map(partial(_look, store), [places[row] for row in new])
            known |= {names[row]: (stamps[row], look) for row, look in zip(new, looks, strict=True)}
        _remember(memory, {name: seen for name, seen in known.items() if max(seen[0][1:3]) < old})
    return {name: known[name][1] for name in names}


def looked_at(store: PictureStore, places: Sequence[Any]) -> list[Look | None]:
    """What an earlier look showed of each picture; None for one that is new since. Nothing is decoded."""
    known = _remembered(_memory_of(store))
    names = [store.name(place) for place in places]
    seen = [known.get(name) for name in names]
    return [
        found[1] if found is not None and found[0] == _stamp(store, place) else None
        for found, place in zip(seen, places, strict=True)
    ]


def unread(count: int) -> tuple[Finding, ...]:
    """What to say of a count that was made without reading so many pictures, where those that cannot be are skipped."""
    if not count:
        return ()
    text = f"{count:,} pictures are counted that nobody has read yet; a run leaves out those that cannot be"
    return (Finding("note", f"{text} (`on_error: skip`)"),)


def _memory_of(store: PictureStore) -> Path:
    return data_root() / ".looks" / f"{digest_text(str(store.folder))[:16]}.json"


def _look(store: PictureStore, place: Any) -> Look:
    try:
        picture = store.read(place, 3)
    except PictureError as error:
        return Look(problem=error.message)
    content = picture.image.tobytes()
    digest = hashlib.blake2b(repr(picture.image.size).encode() + content, digest_size=8).hexdigest()
    blank = all(low == high for low, high in picture.image.getextrema())  # type: ignore[misc]
    return Look(*picture.image.size, picture.turned, digest, blank)


def _stamp(store: PictureStore, place: Any) -> Stamp:
    try:
        return store.stamp(place)
    except OSError:
        return 0, 0, 0, 0


def _remembered(memory: Path) -> dict[str, tuple[Stamp, Look]]:
    """Stamp and look of every path; nothing where another reader has looked, or the file is damaged."""
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
        if content["reader"] != READER:
            return {}
        return {path: _seen(*seen) for path, seen in content["seen"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _seen(then: Sequence[int], look: dict[str, Any]) -> tuple[Stamp, Look]:
    size, modified, changed, inode = then
    return (size, modified, changed, inode), Look(**{**look, "turned": tuple(look["turned"])})


def _remember(memory: Path, known: Mapping[str, tuple[Stamp, Look]]) -> None:
    seen = {path: (then, asdict(look)) for path, (then, look) in known.items()}
    beside = memory.with_name(f".{memory.name}.{uuid.uuid4().hex[:8]}.tmp")
    with suppress(OSError):  # a machine that cannot keep it looks again
        memory.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"reader": READER, "seen": seen}), encoding="utf-8")
        beside.replace(memory)


def left_out(place: str, reasons: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """One line per reason about (reason, path) of what is not taken from the folder `place`."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for reason, path in reasons:
        by_reason[reason].append(path)
    for reason, paths in sorted(by_reason.items()):
        text = f"`{place}`: left out {reason}: {counted(paths)}"
        yield Finding("note" if reason in NOTES else "warning", text)


def folder_findings(
    split: str, looks: Mapping[str, Look], count: int, on_error: str, smallest: int
) -> Iterator[Finding]:
    """What the pictures of a split show, each kind in one line: `count` are in it, inputs are `smallest` wide."""
    broken = {path: look.problem for path, look in looks.items() if look.problem is not None}
    good = [look for look in looks.values() if look.problem is None]
    if broken:
        yield _broken(split, counted(broken), str(next(iter(broken.values()))), on_error)
    yield from _turned(split, Counter(words for look in good for words in look.turned), len(good))
    yield from _equal(split, len(good), len(good) > 1 and len({look.digest for look in good}) == 1)
    blank = sum(look.is_blank for look in good)
    if blank:
        text = f"`{split}`: {blank} of {len(good)} pictures have one colour all over"
        yield Finding("warning" if blank >= FEW * len(good) else "note", text)
    small = sum(min(look.width, look.height) < smallest for look in good)
    if small:
        text = f"`{split}`: {small} of {len(good)} pictures are smaller than the inputs ({smallest}) and scaled up"
        yield Finding("note", text)
    yield from _partly(split, len(looks), count, "chosen by hash")


def glance_findings(split: str, glance: Glance, count: int, on_error: str) -> Iterator[Finding]:
    """The same about `count` pictures in shards."""
    good = glance.count - len(glance.unreadable)
    if glance.unreadable:
        yield _broken(split, str(len(glance.unreadable)), next(iter(glance.unreadable.values())), on_error)
    yield from _turned(split, glance.turned, good)
    yield from _equal(split, good, glance.are_equal)
    yield from _partly(split, glance.count, count, "from the beginnings of all shards")


def shared(looks: Mapping[str, Mapping[str, Look]]) -> Iterator[Finding]:
    """Pictures of other splits that are in the training split, pixel for pixel."""
    trained = {look.digest for look in looks["train"].values() if look.digest}
    for split, seen in looks.items():
        again = [path for path, look in seen.items() if split != "train" and look.digest in trained]
        if again:
            text = f"`{split}`: pictures that `train` has too, on which it judges memory: {counted(again)}"
            yield Finding("warning" if len(again) >= FEW * len(seen) else "note", text)


def by_weight(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, notes last."""
    return tuple(sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level)))


def _broken(split: str, which: str, first: str, on_error: str) -> Finding:
    if on_error == "skip":
        return Finding("warning", f"`{split}`: left out pictures that cannot be read: {which}; {first}")
    return Finding("error", f"`{split}`: pictures that cannot be read: {which}; {first}; {WAY_OUT}")


def _turned(split: str, turned: Mapping[str, int], count: int) -> Iterator[Finding]:
    if turned:
        parts = "; ".join(f"{number} {words}" for words, number in sorted(turned.items()))
        is_dark = any("nearly black" in words for words in turned)
        yield Finding("warning" if is_dark else "note", f"`{split}`: of {count} pictures {parts}")


def _equal(split: str, count: int, are_equal: bool) -> Iterator[Finding]:
    if are_equal:
        text = f"`{split}`: all {count} pictures are equal, pixel for pixel: nothing can be learned from them"
        yield Finding("error" if split == "train" else "warning", text)


def _partly(split: str, looked_at: int, count: int, which: str) -> Iterator[Finding]:
    if looked_at < count:
        yield Finding("note", f"`{split}`: {looked_at} of {count} pictures were looked at, {which}")
