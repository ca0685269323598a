"""Samples without labels that lie beside a task's own: pictures in a folder at any depth, in files of their own or in
shards, or the inputs of a file.

Their ids are negative, which those of our tasks are not: of a picture from its path below the folder, so that it stays
when others are added; of a row its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.tasks.digests import digest_below, digest_file, digest_named, digest_text
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.picture_files import search
from raydistill.tasks.reduced import REDUCED, is_large_file

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from raydistill.tasks.packed_task import PackedTask
    from raydistill.tasks.picture_store import PictureStore
    from raydistill.tasks.picture_survey import Look
    from raydistill.tasks.splits import Split
    from raydistill.tasks.survey import Finding
    from raydistill.tasks.task import Task

THREADS = 8


@dataclass(frozen=True)
class Pool:
    """Pictures below `folder`, in files of their own, tars or Parquet shards, or the array or column `inputs` of
    `file`."""

    folder: Path | None
    file: Path | None
    inputs: str

    @property
    def place(self) -> Path:
        """The folder or the file."""
        found = self.folder or self.file
        assert found is not None
        return found

    def missing(self, task: Task) -> str | None:
        """Why a task can have no samples from here; None when all is well."""
        if self.file is not None:
            return None if self.file.is_file() else f"there is no file `{self.file}`"
        if not self.place.is_dir():
            return f"there is no folder `{self.place}`"
        if not self._paths() and not self._shards():
            return f"there are no pictures in `{self.place}`"
        from raydistill.tasks.picture_task import PictureTask

        if self._shards() and not isinstance(task, PictureTask):
            return (
                f"pictures in shards, as in `{self.place}`, are for tasks that decode pictures while training"
            )
        if len(task.input_shape) != 3 or task.input_shape[0] not in (1, 3) or task.input_dtype != "float32":
            return f"inputs of shape {task.input_shape} are no pictures; name a `file` of arrays"
        return None

    def content(self) -> str:
        """A digest of the samples."""
        if self.file is not None:
            return digest_file(self.file)
        from raydistill.tasks.pictures import READER

        shards = [
            file.relative_to(task.folder).as_posix()
            for task in self._shards()
            for file in task.files()["train"]
        ]
        paths = self._paths()
        reader = f"{READER} {REDUCED}" if self._has_large(paths) else READER
        return digest_text(f"{reader}\n{digest_named(digest_below(self.place, [*paths, *shards]))}")

    def _has_large(self, paths: Iterable[str]) -> bool:
        """Whether a picture may be read at a reduced size, by a task that does so."""
        return any(is_large_file(self.place / path) for path in paths) or any(
            task.has_large(file.relative_to(task.folder).as_posix() for file in task.files()["train"])
            for task in self._shards()
        )

    def __len__(self) -> int:
        if self.file is None:
            shards = [task.keys(file) for task in self._shards() for file in task.files()["train"]]
            return len(self._paths()) + sum(map(len, shards))
        from raydistill.tasks.array_files import shape_of

        return shape_of(self.file, self.inputs)[0]

    def add_to(self, train: Split, task: Task) -> Split:
        """The samples of `train`, and these after them, delivered on the CPU.

        `ValueError`, or `PictureError`, for samples that do not fit the task or cannot be read.
        """
        import numpy as np
        import torch

        from raydistill.tasks.folder_split import FolderSplit, loaders_of
        from raydistill.tasks.joined_split import join
        from raydistill.tasks.mapped_split import MappedSplit
        from raydistill.tasks.splits import TensorSplit

        added: list[Split] = []
        if isinstance(train, FolderSplit) and self.file is None:
            for store, places in self._readable(task):
                ids = torch.tensor(
                    [_name_id(store.name(place)) for place in places.tolist()], dtype=torch.int64
                )
                loaders = loaders_of(train.task, store)
                added.append(FolderSplit(train.task, store, places, _unlabelled(ids), ids, loaders))
        elif (stored := self._mapped(task)) is not None:
            rows = np.arange(len(stored))
            ids = torch.from_numpy(-1 - rows)
            added = [MappedSplit(task, stored, rows, _unlabelled(ids), ids)]
        else:
            inputs, ids = self._in_memory(task)
            added = [TensorSplit(inputs, _unlabelled(ids), ids)]
        if any(torch.isin(part.ids, train.ids.cpu()).any() for part in added):
            raise ValueError(
                f"samples of `{self.place}` have ids of the task's own: let those be 0 and above"
            )
        return reduce(join, added, train.to("cpu"))

    def findings(self, task: Task) -> Iterator[Finding]:
        """How many there are, and what looking at them shows."""
        from raydistill.tasks.picture_survey import MOST, folder_findings, look_at
        from raydistill.tasks.survey import Finding

        name = self.place.name
        text = f"`{name}`: {len(self):,} samples without labels beside the training samples"
        yield Finding("note", f"{text}: students learn from them what their teachers say")
        if self.file is not None:
            if self._mapped(task) is None:
                self._in_memory(task)
            return
        looks: dict[str, Look] = {}
        for store, places in self._pictures():
            by_hash = sorted(places.tolist(), key=lambda place: _name_id(store.name(place)))
            looks |= look_at(store, by_hash[:MOST], THREADS)
        yield from folder_findings(name, looks, len(self), _on_error(task), min(task.input_shape[1:]))

    def _pictures(self) -> Iterator[tuple[PictureStore, NDArray[Any]]]:
        """Stores, and the places in them."""
        import numpy as np

        from raydistill.tasks.picture_store import FolderPictures

        if paths := self._paths():
            yield FolderPictures(self.place.absolute()), np.array(paths, dtype=str)
        for task in self._shards():
            store = task.store()
            yield store, np.arange(len(store.sizes))

    def _paths(self) -> list[str]:
        return [found.path for found in search(self.place) if found.reason is None]

    def _shards(self) -> list[PackedTask]:
        """What would read the shards below the folder, of each kind that is there."""
        from raydistill.tasks.image_parquet import ImageParquet
        from raydistill.tasks.task import data_root
        from raydistill.tasks.webdataset import WebDataset

        folder = self.place.absolute()
        tasks = (
            WebDataset(folder=folder, train="**/*.tar"),
            # A pool may lie where nobody may write.
            ImageParquet(folder=folder, train="**/*.parquet", cache=data_root() / "pictures"),
        )
        return [task for task in tasks if any(folder.rglob(f"*{task.ending}"))]

    def _readable(self, task: Task) -> Iterator[tuple[PictureStore, NDArray[Any]]]:
        from raydistill.tasks.picture_survey import look_at

        for store, places in self._pictures():
            if _on_error(task) == "fail":
                yield store, places
            else:
                looks = look_at(store, places.tolist(), THREADS).values()
                yield store, places[[look.problem is None for look in looks]]

    def _mapped(self, task: Task) -> NDArray[Any] | None:
        """The array of a .npy like that of a task that reads its own where it lies; None otherwise."""
        from raydistill.tasks.array_files import map_npy
        from raydistill.tasks.npy import Npy, refuse_what_is_not_finite

        if self.file is None or self.file.suffix != ".npy" or not isinstance(task, Npy):
            return None
        stored, own = map_npy(self.file), task.stored()["train"]
        if (stored.dtype, stored.shape[1:]) != (own.dtype, own.shape[1:]):
            return None
        refuse_what_is_not_finite(self.file)
        return stored

    def _in_memory(self, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (N, ...) as the task's own are in memory, and ids (N,)."""
        import numpy as np
        import torch

        from raydistill.tasks.splits import check_inputs, tensor_split
        from raydistill.tasks.task import Arrays

        if self.file is None:
            paths = [path for _, places in self._readable(task) for path in places.tolist()]
            with ThreadPoolExecutor(THREADS) as executor:
                pictures = executor.map(
                    lambda path: task.picture_input(self.place / path, task.input_shape), paths
                )
                inputs = np.stack(list(pictures))
            ids = np.array([_name_id(path) for path in paths])
        else:
            from raydistill.tasks.array_files import open_array

            inputs = task.arranged(open_array(self.file, self.inputs))
            ids = -1 - np.arange(len(inputs))
        part = Arrays(inputs, np.full(len(ids), UNLABELLED), ids)
        check_inputs(task, self.place.name, part)
        split = tensor_split(part)
        if (split.inputs.dtype == torch.int64) != (task.input_dtype == "int64"):
            raise ValueError(
                f"`{self.place}` holds {inputs.dtype}, and the inputs of task `{task.name}` are {task.input_dtype}"
            )
        return split.inputs, split.ids


def _name_id(name: str) -> int:
    """A hash, below 0."""
    from raydistill.tasks.hashing import text_id

    return -1 - text_id(name)


def _on_error(task: Task) -> str:
    return getattr(task, "on_error", "fail")


def _unlabelled(ids: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.full_like(ids, UNLABELLED)
