"""Pictures in folders, one per class, as ImageNet's archives unpack: train/<class>/*.jpg, val/<class>/*.jpg."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from raydistill.tasks.digests import digest_text
from raydistill.tasks.task import Arrays, Task, UserPath

if TYPE_CHECKING:
    from raydistill.tasks.splits import TaskData

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})


class ImageFolder(Task):
    """Pictures read from disk while training; for data too big for memory.

    With `test/` beside them, `val/` is the validation split; without it, `val/` is the test split, as is the custom for
    ImageNet, and validation is cut from `train/`. A training view is a crop of random area and shape, resized
    (Szegedy et al., arXiv 1409.4842); otherwise the centre is taken.
    """

    name: Literal["image_folder"] = "image_folder"
    folder: UserPath
    image_size: int = Field(default=224, ge=1)
    """Height and width of an input in pixels."""
    resize: int = Field(default=256, ge=1)
    """Without a view: the shorter side is scaled to this before the centre is cut out."""
    smallest_area: float = Field(default=0.08, gt=0, le=1)
    """Smallest part of the picture a random crop takes."""
    workers: int = Field(default=2, ge=0)
    """Processes that decode pictures, per process that trains."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(_subfolders(self.folder / "train"))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    def missing_files(self) -> str | None:
        for part in ("train", "val"):
            if not (self.folder / part).is_dir() or not _subfolders(self.folder / part):
                return (
                    f"task `image_folder` finds no `{part}/` with one folder per class in `{self.folder}`: "
                    "put pictures there as `train/<class>/*.jpg` and `val/<class>/*.jpg` (optionally `test/`), "
                    "or name another `folder`; nothing can be downloaded"
                )
        return None

    def content(self) -> str:
        lines = [
            f"{path} {size}\n"
            for part in self._folders().values()
            for path, size in _images(self.folder, part)
        ]
        return digest_text("".join(sorted(lines)))

    def read(self) -> dict[str, Arrays]:
        """Inputs are the pictures' paths relative to `folder`; ids are hashes of those paths."""
        return {split: self._read_part(part) for split, part in self._folders().items()}

    def load(self) -> TaskData:
        from raydistill.tasks.splits import build_folder_data

        self.require_files()
        return build_folder_data(self, self.read())

    def _folders(self) -> dict[str, str]:
        if (self.folder / "test").is_dir():
            return {"train": "train", "validation": "val", "test": "test"}
        return {"train": "train", "test": "val"}

    def _read_part(self, part: str) -> Arrays:
        position = {name: index for index, name in enumerate(self.class_names)}
        unknown = set(_subfolders(self.folder / part)) - position.keys()
        if unknown:
            raise ValueError(
                f"`{self.folder / part}` has classes that `train/` has not: {', '.join(sorted(unknown)[:5])}"
            )
        paths = [path for path, _ in _images(self.folder, part)]
        return Arrays(
            inputs=np.array(paths, dtype=str),
            labels=np.array([position[path.split("/")[1]] for path in paths], dtype=np.int64),
            ids=np.array([_path_id(path) for path in paths], dtype=np.int64),
        )


def _path_id(path: str) -> int:
    """63 bits of a hash: an id stays when other pictures are added or removed."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest()) >> 1


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, part: str) -> Iterator[tuple[str, int]]:
    """Relative path with "/" and size in bytes of every picture of one part, sorted."""
    for name in _subfolders(folder / part):
        with os.scandir(folder / part / name) as entries:
            found = [
                (f"{part}/{name}/{entry.name}", entry.stat().st_size)
                for entry in entries
                if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
            ]
        yield from sorted(found)
