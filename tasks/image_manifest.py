"""Pictures that a table lists: a CSV file with `path,label`, and perhaps `split` and `group`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field

from raydistill.tasks.csv_table import CsvTable, opened_csv, path_below
from raydistill.tasks.cuts import group_ids, set_aside
from raydistill.tasks.digests import Stamp, digest_below, digest_named, digest_text, stamp, stamp_of_file
from raydistill.tasks.hashing import text_id
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.picture_files import printable
from raydistill.tasks.picture_task import PictureTask
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, UserPath, common_folder

if TYPE_CHECKING:
    from raydistill.tasks.picture_store import PictureStore

SPLITS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
NO_LABEL = ("", str(UNLABELLED))


class Row(NamedTuple):
    """One picture: the line where it stands, and its cells; `split` and `group` are empty where there is no column."""

    line: int
    path: str
    label: str
    split: str
    group: str


class ImageManifest(PictureTask):
    """Pictures wherever they lie, with their labels in a CSV file whose first line names its columns.

    Cells are separated by commas, semicolons or tabs. A label is a class's name, or its number where `classes` are
    numbers; without one (empty, or -1) a picture of the training split is learned from by what teachers say of it. What
    the table does not divide is divided here: test and validation are cut from the labelled pictures.
    """

    name: str = "image_manifest"
    file: UserPath
    """The table."""
    folder: UserPath | tuple[UserPath, ...] | None = None
    """Where its paths begin, of several folders the first that has the picture; left out, the table's own folder."""
    path: str = "path"
    """Column with a picture's path."""
    label: str = "label"
    """Column with its class."""
    split: str = "split"
    """Column that says where it belongs: train, val or test. Without that column, both are cut."""
    group: str = "group"
    """Column with what it is not to be parted from, such as a patient, for `cut: {by: group}`."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, in order; without it the labels that there are, in the order of the alphabet or of
    numbers."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Part of the labelled pictures set aside for the test, when no row is of that split."""

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders where paths begin."""
        if self.folder is None:
            return (self.file.parent,)
        return self.folder if isinstance(self.folder, tuple) else (self.folder,)

    @property
    def class_names(self) -> tuple[str, ...]:
        if self.classes is not None:
            return self.classes
        names = {row.label for row in self._rows() if row.label not in NO_LABEL}
        if not names:
            raise ValueError(f"`{self.file}` has no label in its column `{self.label}`")
        numbers = all(name.isdecimal() for name in names)
        return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))

    @property
    def unlabelled(self) -> int:
        return sum(row.label in NO_LABEL for row in self._rows())

    def missing_files(self) -> str | None:
        if not self.file.is_file():
            return f"task `image_manifest` finds no table `{self.file}`: name another `file`"
        for root in self.roots:
            if not root.is_dir():
                return f"task `image_manifest` finds no folder `{root}`: name another `folder`"
        return None

    def content(self) -> str:
        parts = self._places()
        digests = self._digests(parts)
        learned = [split for split in parts if split != "test"]
        # Labels and groups count as they are in the table, paths because sample ids follow from them.
        told = [f"{split} {row.label} {row.group} {row.path}" for split in learned for row, _ in parts[split]]
        names = [digest_named(digests[split]) for split in learned]
        reader = self.reader(*(digests[split] for split in learned))
        return digest_text("\n".join([reader, *self.class_names, *sorted(told), *names]))

    def test_content(self) -> str:
        tested = {"test": self._places()["test"]}
        told = sorted(f"{row.label} {row.path}" for row, _ in tested["test"])
        digests = self._digests(tested)["test"]
        return self.read_as(digests, digest_text("\n".join([*told, digest_named(digests)])))

    def digests(self) -> dict[str, dict[str, str]]:
        return self._digests(self._places())

    def _digests(self, parts: Mapping[str, list[tuple[Row, str]]]) -> dict[str, dict[str, str]]:
        folder = common_folder(self.roots)
        return {split: digest_below(folder, [place for _, place in found]) for split, found in parts.items()}

    def samples(self) -> dict[str, Arrays]:
        """Inputs are paths below the folder that all roots lie in; ids are hashes of the paths in the table."""
        return {split: self._arrays(found) for split, found in self._places().items()}

    def store(self) -> PictureStore:
        from raydistill.tasks.picture_store import FolderPictures

        return FolderPictures(common_folder(self.roots))

    def found(self) -> tuple[dict[str, Arrays], PictureStore]:
        from raydistill.tasks.picture_store import FolderPictures

        stamps: dict[str, Stamp] = {}
        parts = {split: self._arrays(found) for split, found in self._places(stamps).items()}
        return parts, FolderPictures(common_folder(self.roots), stamps)

    def _rows(self) -> tuple[Row, ...]:
        self.require_files()
        columns = (self.path, self.label, self.split, self.group)
        return _read_table(self.file, columns, stamp(self.file))

    def _places(self, stamps: dict[str, Stamp] | None = None) -> dict[str, list[tuple[Row, str]]]:
        """Every row with its picture's path below the common folder, by split; `stamps` are filled in by these."""
        splits: dict[str, list[tuple[Row, str]]] = {"train": []}
        found = _found(self._rows(), self.file, self.roots)
        if stamps is not None:
            stamps.update(found)
        for row, (place, _) in zip(self._rows(), found, strict=True):
            splits.setdefault(row.split or "train", []).append((row, place))
        for split in splits.keys() - {"train"}:
            for row, _ in splits[split]:
                if row.label in NO_LABEL:
                    raise ValueError(
                        f"`{self.file}`, line {row.line}: a picture of the {split} split has no label, and nothing is"
                        " judged by it"
                    )
        if not splits["train"]:
            raise ValueError(f"`{self.file}` marks no row as `train` in its column `{self.split}`")
        if "test" not in splits:
            everything = splits["train"]
            part = self._arrays(everything)
            is_test = set_aside(self, part, self.test_fraction, Purpose.TEST_CUT).tolist()
            for split, wanted in (("train", False), ("test", True)):
                splits[split] = [
                    row for row, chosen in zip(everything, is_test, strict=True) if chosen is wanted
                ]
        return splits

    def _arrays(self, found: Sequence[tuple[Row, str]]) -> Arrays:
        position = {name: index for index, name in enumerate(self.class_names)}
        position |= dict.fromkeys(NO_LABEL, UNLABELLED)
        labels = []
        for row, _ in found:
            if row.label not in position:
                raise ValueError(
                    f"`{self.file}`, line {row.line}: the label `{printable(row.label)}` is none of the"
                    f" {len(self.class_names)} `classes`"
                )
            labels.append(position[row.label])
        groups = [row.group for row, _ in found]
        return Arrays(
            inputs=np.array([place for _, place in found], dtype=str),
            labels=np.array(labels, dtype=np.int64),
            ids=np.array([text_id(row.path) for row, _ in found], dtype=np.int64),
            groups=group_ids(np.array(groups, dtype=str)) if all(groups) else None,
        )


@lru_cache(maxsize=16)
def _read_table(file: Path, columns: tuple[str, str, str, str], changed: Stamp) -> tuple[Row, ...]:
    """The rows of a table. `ValueError` names the line that cannot be used."""
    with opened_csv(file) as table:
        rows = tuple(_rows_of(table, file, columns))
    if not rows:
        raise ValueError(f"`{file}` has no row below the names of its columns")
    return rows


def _rows_of(table: CsvTable, file: Path, columns: tuple[str, str, str, str]) -> Iterator[Row]:
    header = table.header
    for option, name in zip(("path", "label"), columns, strict=False):
        if name not in header:
            there = ", ".join(f"`{printable(found)}`" for found in header)
            raise ValueError(
                f"`{file}` has no column `{name}`, it has {there}; name the right one in the option `{option}`"
            )
    if double := [name for name in columns if header.count(name) > 1]:
        raise ValueError(f"`{file}` has several columns `{double[0]}`; rename all but one")
    places = [header.index(name) if name in header else None for name in columns]
    lines: dict[str, int] = {}
    for cells in table:
        line = table.line
        path, label, split, group = ("" if place is None else cells[place].strip() for place in places)
        path = path_below(path, file, line)
        if (other := lines.setdefault(path, line)) != line:
            raise ValueError(f"`{file}`, line {line}: `{printable(path)}` is in line {other} already")
        if places[2] is not None and split.lower() not in SPLITS:
            raise ValueError(
                f"`{file}`, line {line}: `{printable(split)}` is no split; write `train`, `val` or `test`"
            )
        if places[3] is not None and not group:
            raise ValueError(f"`{file}`, line {line}: the picture has no group")
        yield Row(line, path, label, SPLITS.get(split.lower(), ""), group)


def _found(rows: Sequence[Row], file: Path, roots: Sequence[Path]) -> list[tuple[str, Stamp]]:
    """Where each picture lies below the folder that all roots lie in, and its stamp."""
    common = common_folder(roots)
    prefixes = [root.relative_to(common).as_posix() for root in roots]
    places = []
    for row in rows:
        below = (stamp_of_file(root / row.path) for root in roots)
        prefix, seen = next(
            ((prefix, seen) for prefix, seen in zip(prefixes, below, strict=True) if seen), ("", None)
        )
        if seen is None:
            where = " and ".join(f"`{root}`" for root in roots)
            raise ValueError(f"`{file}`, line {row.line}: no picture `{printable(row.path)}` in {where}")
        places.append((row.path if prefix == "." else f"{prefix}/{row.path}", seen))
    return places
