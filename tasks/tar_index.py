"""Where the pictures of a WebDataset's shard lie in it, and their labels. Nothing is ever unpacked."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from raydistill.tasks.picture_files import PICTURE_ENDINGS, printable, reason_of
from raydistill.tasks.shard_names import refuse_pointer

VERSION = "tar-3"
"""Part of what an index is remembered by: change it when a shard gives another one."""

KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
BLOCK = 512
LARGEST_TEXT = 1 << 20
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

Members = dict[str, tuple[int, int]]


def index_tar(file: Path, image: str | None, label: str | None, group: str | None) -> dict[str, Any]:
    """`keys` (members' names), `offsets` and `sizes` in bytes, `labels` and `groups` (texts, None where there is none)
    of the pictures of a shard, and the keys of samples `without` one. `ValueError` for a shard that is damaged."""
    keys: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    labels: list[str | None] = []
    groups: list[str | None] = []
    without: list[str] = []
    with file.open("rb") as stream:
        _check_beginning(file, stream)
        for key, members in _samples(file, stream, seen=set()):
            ending = _picture_of(file, key, members, image)
            if ending is None:
                without.append(key)
                continue
            keys.append(f"{key}.{ending}")
            offsets.append(members[ending][0])
            sizes.append(members[ending][1])
            text = _text_of(
                file, key, members, label or ("cls" if "cls" in members else "json.label"), stream
            )
            labels.append(None if text == "-1" else text)
            groups.append(None if group is None else _text_of(file, key, members, group, stream))
    found = {"keys": keys, "offsets": offsets, "sizes": sizes, "labels": labels, "without": without}
    return found if group is None else {**found, "groups": groups}


def pictures_in_tar(file: Path, image: str | None = None) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each picture in a tar, in their order, whatever else is in it: the member
    `image` of each sample, or every member that is a picture. `ValueError` for a tar that is damaged, where that is."""
    with file.open("rb") as stream:
        _check_beginning(file, stream)
        if image is not None:
            for key, members in _samples(file, stream):
                if image in members:
                    yield f"{key}.{image}", *members[image]
            return
        for name, place in _members(file, stream):
            parts = PurePosixPath(name)
            if parts.suffix.lower() in PICTURE_ENDINGS and not any(map(reason_of, parts.parts)):
                yield name, *place


def _check_beginning(file: Path, stream: IO[bytes]) -> None:
    refuse_pointer(file)
    beginning = stream.read(max(map(len, COMPRESSED)))
    for magic, packer in COMPRESSED.items():
        if beginning.startswith(magic):
            raise ValueError(
                f"`{file}` is compressed with {packer}, in which nothing is found without reading all: unpack it"
            )
    stream.seek(0)


def _samples(file: Path, stream: IO[bytes], seen: set[str] | None = None) -> Iterator[tuple[str, Members]]:
    """Key → ending → place of neighbours whose names are equal up to the first dot. `ValueError` for a key that is in
    `seen`."""
    current = ""
    members: Members = {}
    for name, place in _members(file, stream):
        matched = KEY.fullmatch(name)
        if matched is None:
            continue
        key, ending = matched[1], matched[2].lower()
        if key != current:
            if members:
                yield current, members
            current, members = key, {}
            if seen is not None:
                if key in seen:
                    raise ValueError(
                        f"`{file}` has the key `{printable(key)}` twice: samples need different keys, side by side"
                    )
                seen.add(key)
        if ending in members:
            raise ValueError(
                f"`{file}` has `{printable(key)}.{printable(ending)}` twice: samples need different keys"
            )
        members[ending] = place
    if members:
        yield current, members


def _members(file: Path, stream: IO[bytes]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, offset and size of every file in the tar."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            while (member := opened.next()) is not None:
                if member.isreg() and not member.issparse():
                    yield member.name.removeprefix("./"), (member.offset_data, member.size)
                opened.members = []  # type: ignore[attr-defined]  # it would keep them all
            end = opened.offset
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"`{file}` is truncated or no tar: {error}") from error
    # The library takes a header that is damaged, or not there any more, for the end.
    stream.seek(end)
    if stream.read(BLOCK) != bytes(BLOCK):
        raise ValueError(
            f"`{file}` is truncated or damaged at byte {end}: it has no end there; bring it again"
        )


def _picture_of(file: Path, key: str, members: Members, image: str | None) -> str | None:
    if image is not None:
        return image if image in members else None
    endings = [ending for ending in members if PurePosixPath(f"x.{ending}").suffix in PICTURE_ENDINGS]
    if len(endings) > 1:
        several = ", ".join(f"`{printable(one)}`" for one in endings)
        raise ValueError(
            f"sample `{printable(key)}` of `{file}` has several pictures ({several}); name one in the option `image`"
        )
    return endings[0] if endings else None


def _text_of(file: Path, key: str, members: Members, place: str, stream: IO[bytes]) -> str | None:
    """What stands in a member, `cls`, or in a field of one in JSON, `json.label`; None where nothing does."""
    parts = place.split(".")
    members_in_it = (end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in members)
    if (end := next(members_in_it, None)) is None:
        return None
    member, fields = ".".join(parts[:end]), parts[end:]
    offset, size = members[member]
    stream.seek(offset)
    try:
        if size > LARGEST_TEXT:
            raise ValueError(f"it has {size} bytes")
        text = stream.read(size).decode().strip()
        if not fields and not member.endswith("json"):
            return text or None
        return _field(json.loads(text), fields)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{printable(key)}.{member}` of `{file}` cannot be read: {error}") from error


def _field(value: Any, fields: list[str]) -> str | None:
    for name in fields:
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{json.dumps(value)[:40]} is neither a number nor a name")
    return str(value)
