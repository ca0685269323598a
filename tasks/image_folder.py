"""Pictures in folders, one per class, as ImageNet's archives unpack: train/<class>/*.jpg, val/<class>/*.jpg."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raydistill.tasks.digests import digest_below, digest_named, digest_text
from raydistill.tasks.picture_files import NO_PICTURES, folders_in, has_picture, search
from raydistill.tasks.picture_task import PictureTask
from raydistill.tasks.task import Arrays, UserPath

if TYPE_CHECKING:
    from raydistill.tasks.picture_store import PictureStore
    from raydistill.tasks.survey import Finding


class ImageFolder(PictureTask):
    """Pictures read from disk while training; for data too big for memory.

    With `test/` beside them, `val/` is the validation split; without it, `val/` is the test split, as is the custom for
    ImageNet, and validation is cut from `train/`. A training view is a crop of random area and shape, resized
    (Szegedy et al., arXiv 1409.4842); otherwise the centre is taken. Deeper folders belong to the class they lie in;
    hidden files, other endings, folders without a picture are left out, and a survey before the first stage says so.
    """

    name: str = "image_folder"
    folder: UserPath
    """Holds `train/` and `val/`, perhaps `test/`, each with one folder per class."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(_classes(self.folder / "train"))

    def missing_files(self) -> str | None:
        for part in ("train", "val"):
            if not any(True for _ in _classes(self.folder / part)):
                return (
                    f"task `image_folder` finds no `{part}/` with one folder per class in `{self.folder}`: "
                    "put pictures there as `train/<class>/*.jpg` and `val/<class>/*.jpg` (optionally `test/`), "
                    "or name another `folder`; nothing can be downloaded"
                )
        return None

    def content(self) -> str:
        from raydistill.tasks.pictures import READER

        # Paths count: class and sample id follow from them.
        learned = [files for split, files in self.digests().items() if split != "test"]
        return digest_text("\n".join([READER, *self.class_names, *map(digest_named, learned)]))

    def test_content(self) -> str:
        return digest_named(self.digests()["test"])

    def digests(self) -> dict[str, dict[str, str]]:
        return {
            split: digest_below(self.folder, [path for path, _ in _images(self.folder, part)])
            for split, part in self._folders().items()
        }

    def samples(self) -> dict[str, Arrays]:
        """Inputs are the pictures' paths relative to `folder`; ids are hashes of those paths."""
        return {split: self._read_part(part) for split, part in self._folders().items()}

    def store(self) -> PictureStore:
        from raydistill.tasks.picture_store import FolderPictures

        return FolderPictures(self.folder)

    def part_name(self, split: str) -> str:
        return self._folders()[split]

    def left_out(self) -> Iterator[Finding]:
        for part in self._folders().values():
            yield from self._left_out(part)

    def _left_out(self, part: str) -> Iterator[Finding]:
        from raydistill.tasks.picture_survey import left_out
        from raydistill.tasks.survey import Finding

        everything = list(search(self.folder / part))
        pictures = [found.path for found in everything if found.reason is None]
        reasons = [(found.reason, found.path) for found in everything if found.reason is not None]
        reasons += [("pictures outside of a class's folder", path) for path in pictures if "/" not in path]
        filled = {path.partition("/")[0] for path in pictures}
        reasons += [(NO_PICTURES, name) for name in folders_in(self.folder / part) if name not in filled]
        yield from left_out(f"{part}/", reasons)
        deep = [path for path in pictures if path.count("/") > 1]
        if deep:
            yield Finding("note", f"`{part}/`: pictures in deeper folders: {len(deep)} (`{deep[0]}`, …)")

    def _folders(self) -> dict[str, str]:
        if (self.folder / "test").is_dir():
            return {"train": "train", "validation": "val", "test": "test"}
        return {"train": "train", "test": "val"}

    def _read_part(self, part: str) -> Arrays:
        position = {name: index for index, name in enumerate(self.class_names)}
        unknown = set(_classes(self.folder / part)) - position.keys()
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


def _classes(part: Path) -> Iterator[str]:
    """Folders of a part with a picture in them, sorted."""
    return (name for name in folders_in(part) if has_picture(part / name))


def _images(folder: Path, part: str) -> Iterator[tuple[str, int]]:
    """Relative path with "/" and size in bytes of every picture of one part, sorted."""
    for name in folders_in(folder / part):
        for found in search(folder / part / name):
            if found.reason is None:
                yield f"{part}/{name}/{found.path}", found.size
