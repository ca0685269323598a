"""Where encoded pictures lie: files below a folder, or stretches of larger files that hold many."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.digests import Stamp, stamp
from raydistill.tasks.picture_files import printable
from raydistill.tasks.pictures import Picture, PictureError, Wanted, read_part, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image


class Parts(Protocol):
    """Pictures by their places, of which parts are read."""

    def read_part(self, place: Any, channels: int, wanted: Wanted) -> Image:
        """What is wanted of a picture, as `pictures.read_part`. `PictureError` names one that cannot be read."""
        ...


class PictureStore(Parts, Protocol):
    """Pictures by their places: whatever a task's `read` gives as inputs."""

    @property
    def folder(self) -> Path:
        """All of them lie below it."""
        ...

    def name(self, place: Any) -> str:
        """What a user calls the picture, different from all others below the folder."""
        ...

    def stamp(self, place: Any) -> Stamp:
        """Changes when the picture does. `OSError` where it is not there."""
        ...

    def read(self, place: Any, channels: int) -> Picture:
        """The whole picture. `PictureError` names one that cannot be read."""
        ...


@dataclass(frozen=True)
class FolderPictures:
    """A file per picture; a place is its path below `folder`, or an absolute one. `known` are stamps of some of them,
    by their places, that were taken just now."""

    folder: Path
    known: Mapping[str, Stamp] = field(default_factory=dict, compare=False)

    def name(self, place: str) -> str:
        return place

    def stamp(self, place: str) -> Stamp:
        return self.known.get(place) or stamp(self.folder / place)

    def read(self, place: str, channels: int) -> Picture:
        return read_picture(self.folder / place, channels)

    def read_part(self, place: str, channels: int, wanted: Wanted) -> Image:
        return read_part(self.folder / place, channels, wanted)


@dataclass(frozen=True, eq=False)
class PackedPictures:
    """Many pictures per file; a place is a number, counted through `files`, of which each begins at one of `starts`.

    `offsets` and `sizes` (N,) are in bytes, `keys` (N,) UTF-8: what pictures are called in their `shards`, the files
    that a user knows.
    """

    folder: Path
    shards: Sequence[Path]
    files: Sequence[Path]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    keys: NDArray[np.bytes_]

    def name(self, place: int) -> str:
        return f"{self.shards[self._file(place)].relative_to(self.folder)}/{self._key(place)}"

    def stamp(self, place: int) -> Stamp:
        return stamp(self.shards[self._file(place)])

    def read(self, place: int, channels: int) -> Picture:
        content, name = self._content(place)
        return read_picture(content, channels, name=name)

    def read_part(self, place: int, channels: int, wanted: Wanted) -> Image:
        content, name = self._content(place)
        return read_part(content, channels, wanted, name=name)

    def _content(self, place: int) -> tuple[bytes, str]:
        """The bytes of a picture, and what errors call it."""
        number = self._file(place)
        name = f"`{self._key(place)}` of `{self.shards[number]}`"
        content = read_stretch(
            self.files[number], int(self.offsets[place]), int(self.sizes[place]), name=name
        )
        return content, name

    def _file(self, place: int) -> int:
        return int(np.searchsorted(self.starts, place, side="right")) - 1

    def _key(self, place: int) -> str:
        return printable(self.keys[place].decode(errors="surrogateescape"))


def read_stretch(file: Path, offset: int, size: int, *, name: str) -> bytes:
    """The encoded picture that lies in a file. `PictureError` calls it by `name`."""
    try:
        with file.open("rb", buffering=0) as stream:
            content = os.pread(stream.fileno(), size, offset)
    except OSError as error:
        raise PictureError(f"{name} cannot be read: {error.strerror or error}") from None
    if len(content) < size:
        raise PictureError(f"{name} cannot be read: the file has become shorter")
    return content
