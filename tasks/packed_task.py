"""Tasks whose pictures lie in shards, many in each: what is the same however a shard is made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raydistill.tasks.cuts import group_ids, set_aside
from raydistill.tasks.digests import digest_below, digest_named, digest_text
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.picture_files import printable
from raydistill.tasks.picture_task import PictureTask
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.shard_names import shards_by_split, unassigned
from raydistill.tasks.task import Arrays, UserPath

if TYPE_CHECKING:
    from raydistill.tasks.picture_store import PackedPictures
    from raydistill.tasks.survey import Finding


@dataclass(frozen=True, eq=False)
class Shard:
    """What a shard says of its pictures: `keys` (N,), UTF-8, different from one another.

    `labels` (N,) are indices of classes, or where `texts` are given those of texts; `UNLABELLED` where there is none.
    """

    keys: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    texts: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    """Of the classes, in the order of the labels."""
    groups: NDArray[np.int64] | None = None
    """(N,), where they are asked for."""
    without: tuple[str, ...] = ()
    """Keys of samples that have no picture."""


@dataclass(frozen=True, eq=False)
class Stretches:
    """Where the pictures of a shard lie: `offsets` and `sizes` (N,) in bytes, in `file`."""

    file: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


class PackedTask(PictureTask):
    """The splits are told by the names of the shards (`train-000.tar`, `data/test-00000-of-00001.parquet`), or by
    options. With validation and without a test split, validation is the test, as is the custom for ImageNet; with
    neither, a test split is cut by hash."""

    folder: UserPath
    """Holds the shards, at any depth."""
    train: str | tuple[str, ...] | None = None
    """Shards of the training split below `folder`: patterns such as `train-{000..099}.tar` or `a/*.parquet`; without
    it, those whose names say so, or all if no name says anything."""
    validation: str | tuple[str, ...] | None = None
    """The same for the validation split."""
    test: str | tuple[str, ...] | None = None
    """The same for the test split."""
    classes: int | tuple[str, ...] | None = None
    """Number or names of the classes; without it, the names are those that the shards have."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Part of the labelled samples set aside for the test, when there are no shards for it."""

    ending: ClassVar[str]
    """What the names of shards end with."""
    version: ClassVar[str] = ""
    """Part of the identity: how shards are read."""
    not_identity: ClassVar[frozenset[str]] = PictureTask.not_identity | {"train", "validation", "test"}

    def keys(self, file: Path) -> NDArray[np.bytes_]:
        """Those of a shard's pictures, without a look at labels."""
        return self.shard(file).keys

    def shard(self, file: Path) -> Shard:
        """What a shard says. `ValueError` where it is damaged."""
        raise NotImplementedError

    def stretches(self, file: Path) -> Stretches:
        """Where its pictures are read; made so that they can be, if need be."""
        raise NotImplementedError

    @property
    def class_names(self) -> tuple[str, ...]:
        if isinstance(self.classes, tuple):
            return self.classes
        if self.classes is not None:
            return tuple(map(str, range(self.classes)))
        files = self.files()["train"]
        shards = [self.shard(file) for file in files]
        if shards[0].names is not None:
            return shards[0].names
        texts = {text for shard in shards for text in shard.texts or ()}
        if not any(len(shard.keys) for shard in shards):
            raise ValueError(f"`{files[0]}` and those beside it have no pictures; see the option `image`")
        if not texts or _are_numbers(texts):
            raise ValueError(
                f"nothing in `{files[0]}` names the classes; give their names or their number in the option `classes`"
            )
        return tuple(sorted(texts))

    @property
    def unlabelled(self) -> int:
        shards = map(self.shard, self.files()["train"])
        return sum(int((shard.labels == UNLABELLED).sum()) for shard in shards)

    def files(self) -> dict[str, list[Path]]:
        """The shards of each split that has some."""
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return shards_by_split(self.folder, self.ending, given)

    def missing_files(self) -> str | None:
        try:
            found = self.files()
        except ValueError as error:
            return f"task `{self.name}`: {error}"
        if "train" in found:
            return None
        return (
            f"task `{self.name}` finds no shards `*{self.ending}` of the training split in `{self.folder}`: put them"
            " there, name them in the option `train`, or name another `folder`; nothing can be downloaded"
        )

    def content(self) -> str:
        # Names of shards count: sample ids follow from them. So do splits, which are told by options too.
        digests = self.digests()
        learned = [digests[split] for split in ("train", "validation") if split in digests]
        reader = self.reader(*learned)
        return digest_text("\n".join([reader, self.version, *self.class_names, *map(digest_named, learned)]))

    def test_content(self) -> str:
        if "test" not in self.files():
            return self.content()
        return self.read_as(digests := self.digests()["test"], digest_named(digests))

    def has_large(self, files: Iterable[str]) -> bool:
        return any(self.has_large_picture(self.folder / file) for file in files)

    def has_large_picture(self, file: Path) -> bool:
        """Whether a shard has a picture that may be read at a reduced size."""
        from raydistill.tasks.reduced import has_large_jpeg

        place = self.stretches(file)
        with place.file.open("rb") as stream:
            return has_large_jpeg(stream, zip(place.offsets.tolist(), place.sizes.tolist(), strict=True))

    def digests(self) -> dict[str, dict[str, str]]:
        return {
            split: digest_below(self.folder, [self._place(file) for file in files])
            for split, files in self.files().items()
        }

    def samples(self) -> dict[str, Arrays]:
        """Inputs are the numbers of pictures in `store`; ids are hashes of their shards' paths and their keys."""
        parts = self._everything()
        if all((part.labels == UNLABELLED).all() for part in parts.values()):
            first = self.files()["train"][0]
            raise ValueError(
                f"no sample of `{first}`, or of those beside it, has a label; see the option `label`"
            )
        for split in parts.keys() & {"validation", "test"}:
            if unknown := int((parts[split].labels == UNLABELLED).sum()):
                raise ValueError(
                    f"task `{self.name}`: {unknown} of {len(parts[split].ids)} samples of `{split}` have no label, and"
                    f" nothing is judged by them; name other shards in the option `{split}`"
                )
        if "test" not in parts:
            train = parts["train"]
            chosen = set_aside(self, train, self.test_fraction, Purpose.TEST_CUT)
            parts |= {"train": train.take(~chosen), "test": train.take(chosen)}
        return parts

    def store(self) -> PackedPictures:
        from raydistill.tasks.picture_store import PackedPictures

        files = [file for files in self.files().values() for file in files]
        places = [self.stretches(file) for file in files]
        counts = [len(place.sizes) for place in places]
        return PackedPictures(
            folder=self.folder,
            shards=files,
            files=[place.file for place in places],
            starts=np.cumsum([0, *counts[:-1]]),
            offsets=np.concatenate([place.offsets for place in places]),
            sizes=np.concatenate([place.sizes for place in places]),
            keys=np.concatenate([self.keys(file) for file in files]),
        )

    def left_out(self) -> Iterator[Finding]:
        from raydistill.tasks.picture_survey import left_out

        files = self.files()
        reasons = [("shards of no split", place) for place in unassigned(self.folder, self.ending, files)]
        for file in (file for split in files.values() for file in split):
            place = self._place(file)
            reasons += [("samples without a picture", f"{place}/{key}") for key in self.shard(file).without]
        yield from left_out(str(self.folder), reasons)

    def _everything(self) -> dict[str, Arrays]:
        """The samples of all shards, by split."""
        names = self.class_names
        position = {name: index for index, name in enumerate(names)}
        parts: dict[str, Arrays] = {}
        first = 0
        are_numbers: bool | None = None
        for split, files in self.files().items():
            shards = [self.shard(file) for file in files]
            for file, shard in zip(files, shards, strict=True):
                if shard.names is not None and self.classes is None and shard.names != names:
                    raise ValueError(
                        f"`{file}` names other classes than the first training shard; see `classes`"
                    )
            if are_numbers is None:  # training comes first, and decides
                are_numbers = _are_numbers({text for shard in shards for text in shard.texts or ()})
            labels = [_labels(*pair, position, are_numbers) for pair in zip(files, shards, strict=True)]
            ids = [_ids(self._place(file), shard.keys) for file, shard in zip(files, shards, strict=True)]
            count = sum(map(len, ids))
            groups = [shard.groups for shard in shards if shard.groups is not None]
            parts[split] = Arrays(
                np.arange(first, first + count),
                np.concatenate(labels),
                np.concatenate(ids),
                np.concatenate(groups) if groups else None,
            )
            first += count
        return parts

    def _place(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


def numbered_groups(file: Path, keys: Sequence[str], groups: Sequence[int | str | None]) -> NDArray[np.int64]:
    """Numbers of a shard's groups (N,). `ValueError` names a picture that has none."""
    if None in groups:
        raise ValueError(
            f"`{printable(keys[groups.index(None)])}` of `{file}` has no group; see the option `group`"
        )
    return group_ids(np.array(groups)) if groups else np.zeros(0, dtype=np.int64)


def _are_numbers(texts: set[str]) -> bool:
    return all(text.isdecimal() for text in texts)


def _labels(file: Path, shard: Shard, position: Mapping[str, int], are_numbers: bool) -> NDArray[np.int64]:
    """Indices of classes (N,). `ValueError` names a text that is none, and where it stands."""
    count = len(position)
    if shard.texts is None:
        indices = list(range(count))
        wrong = (shard.labels < UNLABELLED) | (shard.labels >= count)
    else:
        found = [
            int(text) if are_numbers and text.isdecimal() else position.get(text, count)
            for text in shard.texts
        ]
        indices = [index if index < count else UNLABELLED for index in found]
        wrong = np.array([*(index >= count for index in found), False])[shard.labels]
    if wrong.any():
        row = int(wrong.argmax())
        key = printable(shard.keys[row].decode(errors="surrogateescape"))
        label = shard.labels[row] if shard.texts is None else printable(shard.texts[shard.labels[row]])
        raise ValueError(
            f"`{key}` of `{file}` has the label `{label}`, which is none of the {count} classes; see the option"
            " `classes`"
        )
    return np.array([*indices, UNLABELLED], dtype=np.int64)[shard.labels]


def _ids(place: str, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """63 bits of a hash each: an id stays when other samples are added or removed."""
    start = hashlib.blake2b(place.encode() + b"\0", digest_size=8)
    ids = np.empty(len(keys), dtype=np.int64)
    for row, key in enumerate(keys.tolist()):
        (own := start.copy()).update(key)
        ids[row] = int.from_bytes(own.digest()) >> 1
    return ids
