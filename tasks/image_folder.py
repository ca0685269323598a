"""Pictures in folders, one per class, as ImageNet's archives unpack: train/<class>/*.jpg, val/<class>/*.jpg."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from raydistill.tasks.cuts import group_ids, set_aside
from raydistill.tasks.digests import digest_below, digest_named, digest_text
from raydistill.tasks.hashing import text_id
from raydistill.tasks.picture_files import NO_PICTURES, folders_in, has_picture, search
from raydistill.tasks.picture_task import PictureTask
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, UserPath, common_folder

if TYPE_CHECKING:
    from raydistill.tasks.picture_store import PictureStore
    from raydistill.tasks.survey import Finding


SPLIT_FOLDERS = ("train", "val", "test")


@dataclass(frozen=True)
class Entry:
    """A picture: its place below the folder that all roots lie in, its class, and the folders below that of its class
    (above it, where `class_folder` is `last`) in which it lies; itself where there are none."""

    place: str
    label: str
    group: str


class ImageFolder(PictureTask):
    """Pictures read from disk while training; for data too big for memory.

    With `test/` beside them, `val/` is the validation split; without it, `val/` is the test split, as is the custom for
    ImageNet, and validation is cut from `train/`. Where there is none of these, the classes' folders lie in `folder`
    itself, and validation and test are cut. A training view is a crop of random area and shape, resized (Szegedy et
    al., arXiv 1409.4842); otherwise the centre is taken. Deeper folders belong to the class they lie in (or are it:
    `class_folder: last`), and each is a group for `cut: {by: group}`; hidden files, other endings, folders without a
    picture are left out, and a survey before the first stage says so. Pictures that a table lists are the task
    `image_manifest`.
    """

    name: str = "image_folder"
    folder: UserPath | tuple[UserPath, ...]
    """Holds `train/` and `val/`, perhaps `test/`, each with one folder per class; or the classes' folders themselves.
    Several folders are taken together."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Part of the pictures set aside for the test, where the folders do not divide them."""

    class_folder: Literal["first", "last"] = "first"
    """Which folder is a picture's class: the first one (below `train/` and so on), or the last, which it lies in.

    `a/b/cat/1.jpg` is of class `a` or `cat`, and of group `b/cat` or `a/b`.
    """

    came_later: ClassVar[frozenset[str]] = PictureTask.came_later | {"test_fraction", "class_folder"}

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders whose pictures are taken together."""
        return self.folder if isinstance(self.folder, tuple) else (self.folder,)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted(self._classes(self._parts()["train"])))

    def missing_files(self) -> str | None:
        parts = self._parts()
        for part in parts.values():
            if not self._classes(part):
                where = " or ".join(f"`{root}`" for root in self.roots)
                what = (
                    f"no `{part}/` with one folder per class"
                    if part
                    else "neither `train/` nor classes' folders"
                )
                return (
                    f"task `image_folder` finds {what} in {where}: put pictures there as `train/<class>/*.jpg` and"
                    " `val/<class>/*.jpg` (optionally `test/`), or as `<class>/*.jpg` alone, or name another `folder`;"
                    " nothing can be downloaded"
                )
        return None

    def content(self) -> str:
        # Paths count: class and sample id follow from them.
        learned = [files for split, files in self.digests().items() if split != "test"]
        reader = self.reader(*learned)
        return digest_text("\n".join([reader, *self.class_names, *map(digest_named, learned)]))

    def test_content(self) -> str:
        return self.read_as(digests := self.digests()["test"], digest_named(digests))

    def digests(self) -> dict[str, dict[str, str]]:
        common = common_folder(self.roots)
        return {
            split: digest_below(common, [entry.place for entry in entries])
            for split, entries in self._entries().items()
        }

    def samples(self) -> dict[str, Arrays]:
        """Inputs are the pictures' paths below the folder that all `roots` lie in; ids are hashes of those paths."""
        position = {name: index for index, name in enumerate(self.class_names)}
        for part in self._parts().values():
            if unknown := self._classes(part) - position.keys():
                where = " and ".join(f"`{root / part}`" for root in self.roots)
                raise ValueError(
                    f"{where} has classes that `train/` has not: {', '.join(sorted(unknown)[:5])}"
                )
        return {split: self._arrays(entries, position) for split, entries in self._entries().items()}

    def store(self) -> PictureStore:
        from raydistill.tasks.picture_store import FolderPictures

        return FolderPictures(common_folder(self.roots))

    def part_name(self, split: str) -> str:
        return self._parts().get(split) or split

    def left_out(self) -> Iterator[Finding]:
        for part in self._parts().values():
            for root in self.roots:
                shown = f"{part}/" if len(self.roots) == 1 and part else f"{root / part}/"
                yield from _left_out(root / part, shown, notes_deep=self.class_folder == "first")

    def _parts(self) -> dict[str, str]:
        """The folder of each split; that of `train` is empty where the classes' folders are not divided."""
        there = {part for part in SPLIT_FOLDERS if any((root / part).is_dir() for root in self.roots)}
        if not there:
            return {"train": ""}
        if "test" in there:
            return {"train": "train", "validation": "val", "test": "test"}
        return {"train": "train", "test": "val"}

    def _classes(self, part: str) -> set[str]:
        """Names of a part's folders with a picture in them."""
        if self.class_folder == "last":
            return {entry.label for entry in self._pictures(part)}
        return {
            name for root in self.roots for name in folders_in(root / part) if has_picture(root / part / name)
        }

    def _entries(self) -> dict[str, list[Entry]]:
        """The pictures of every split, in the order of their paths."""
        parts = self._parts()
        splits = {split: [*self._pictures(part)] for split, part in parts.items()}
        if "test" not in parts:
            position = {name: index for index, name in enumerate(self.class_names)}
            everything = splits["train"]
            part = self._arrays(everything, position)
            is_test = set_aside(self, part, self.test_fraction, Purpose.TEST_CUT).tolist()
            for split, wanted in (("train", False), ("test", True)):
                splits[split] = [
                    entry for entry, chosen in zip(everything, is_test, strict=True) if chosen is wanted
                ]
        return splits

    def _arrays(self, entries: Sequence[Entry], position: Mapping[str, int]) -> Arrays:
        by_group = self.cut is not None and self.cut.by == "group"
        return Arrays(
            inputs=np.array([entry.place for entry in entries], dtype=str),
            labels=np.array([position[entry.label] for entry in entries], dtype=np.int64),
            ids=np.array([text_id(entry.place) for entry in entries], dtype=np.int64),
            groups=group_ids(np.array([entry.group for entry in entries], dtype=str)) if by_group else None,
        )

    def _pictures(self, part: str) -> Iterator[Entry]:
        common = common_folder(self.roots)
        for root in self.roots:
            for first in folders_in(root / part):
                prefix = (root / part / first).relative_to(common).as_posix()
                for found in search(root / part / first):
                    if found.reason is None:
                        place, below = f"{prefix}/{found.path}", found.path.rpartition("/")[0]
                        if self.class_folder == "last":
                            above, _, name = f"{first}/{below}".rstrip("/").rpartition("/")
                            yield Entry(place, name, above or place)
                        else:
                            yield Entry(place, first, below or place)


def _left_out(folder: Path, shown: str, *, notes_deep: bool) -> Iterator[Finding]:
    from raydistill.tasks.picture_survey import left_out
    from raydistill.tasks.survey import Finding

    if not folder.is_dir():
        return
    everything = list(search(folder))
    pictures = [found.path for found in everything if found.reason is None]
    reasons = [(found.reason, found.path) for found in everything if found.reason is not None]
    reasons += [("pictures outside of a class's folder", path) for path in pictures if "/" not in path]
    filled = {path.partition("/")[0] for path in pictures}
    reasons += [(NO_PICTURES, name) for name in folders_in(folder) if name not in filled]
    yield from left_out(shown, reasons)
    deep = [path for path in pictures if path.count("/") > 1]
    if deep and notes_deep:
        yield Finding("note", f"`{shown}`: pictures in deeper folders: {len(deep)} (`{deep[0]}`, …)")
