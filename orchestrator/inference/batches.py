"""Inputs as batches of one size, in their order; pictures are decoded by all cores, ahead of the model."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydistill.prediction import scaled
from raydistill.tasks.picture_store import read_stretch
from raydistill.training.evaluation import BATCH

CHUNK = 16  # pictures that a thread takes at once
BYTES_AHEAD = 2**28  # of encoded pictures in memory
MOST_WAITING = 20 * BATCH  # inputs, where hardly any can be read


@dataclass(frozen=True)
class Stretch:
    """Where an encoded picture lies in a file, in bytes."""

    file: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Picture:
    """A picture that is not decoded yet; errors call it by `name`, where that is not its file's."""

    source: str
    content: Path | bytes | Stretch
    name: str | None = None

    def encoded(self) -> Path | bytes:
        """Its file or its bytes. `PictureError` where they are gone."""
        if isinstance(self.content, Stretch):
            place = self.content
            return read_stretch(place.file, place.offset, place.size, name=self.name or f"`{self.source}`")
        return self.content


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs by their `sources`: `errors` of some by their place among them, `values` (M, ...) of the others."""

    sources: list[str]
    values: NDArray[Any]
    errors: Mapping[int, str] = field(default_factory=dict)

    @property
    def raw(self) -> Tensor:
        """The values as models take them: bytes become numbers in [0, 1]."""
        return scaled(torch.from_numpy(self.values))

    def split(self, count: int) -> "tuple[Batch, Batch]":
        """The first `count` that could be read, with the errors between them, and the rest."""
        readable = [place for place in range(len(self.sources)) if place not in self.errors]
        end = readable[count - 1] + 1
        first = {place: error for place, error in self.errors.items() if place < end}
        rest = {place - end: error for place, error in self.errors.items() if place >= end}
        return (
            Batch(self.sources[:end], self.values[:count], first),
            Batch(self.sources[end:], self.values[count:], rest),
        )


def failed(source: str, error: Exception) -> Batch:
    """The batch of one input that cannot be read."""
    return Batch([source], np.empty(0, np.float32), {0: str(error)})


def decoded(
    found: Iterable[Picture | Batch], decode: Callable[[Picture], NDArray[np.uint8]]
) -> Iterator[Batch]:
    """Everything found, in its order, as batches of any size; pictures go through `decode` in threads.

    As many as one batch of the model holds are worked on ahead of whoever takes them.
    """
    executor = ThreadPoolExecutor(_processors(), thread_name_prefix="decode")
    waiting: deque[tuple[int, int, Future[Batch] | Batch]] = (
        deque()
    )  # inputs, bytes, and what becomes of them
    try:
        for chunk in _chunks(found):
            if isinstance(chunk, Batch):
                waiting.append((len(chunk.sources), chunk.values.nbytes, chunk))
            else:
                size = sum(len(one.content) for one in chunk if isinstance(one.content, bytes))
                waiting.append((len(chunk), size, executor.submit(_decode, chunk, decode)))
            while sum(one[0] for one in waiting) > BATCH or sum(one[1] for one in waiting) > BYTES_AHEAD:
                yield _result(waiting.popleft()[2])
        while waiting:
            yield _result(waiting.popleft()[2])
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def regrouped(parts: Iterable[Batch], size: int = BATCH) -> Iterator[Batch]:
    """The same inputs in batches with `size` that could be read, whatever lies between them; the last has fewer."""
    waiting: list[Batch] = []
    readable = total = 0
    for part in parts:
        while readable + len(part.values) >= size:
            head, part = part.split(size - readable)
            yield _joined([*waiting, head])
            waiting, readable, total = [], 0, 0
        waiting.append(part)
        readable, total = readable + len(part.values), total + len(part.sources)
        if total > MOST_WAITING:
            yield _joined(waiting)
            waiting, readable, total = [], 0, 0
    if total:
        yield _joined(waiting)


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(found: Iterable[Picture | Batch]) -> Iterator[list[Picture] | Batch]:
    chunk: list[Picture] = []
    for one in found:
        if isinstance(one, Picture):
            chunk.append(one)
        if chunk and (len(chunk) == CHUNK or isinstance(one, Batch)):
            yield chunk
            chunk = []
        if isinstance(one, Batch):
            yield one
    if chunk:
        yield chunk


def _result(one: Future[Batch] | Batch) -> Batch:
    return one if isinstance(one, Batch) else one.result()


def _decode(chunk: list[Picture], decode: Callable[[Picture], NDArray[np.uint8]]) -> Batch:
    values: list[NDArray[np.uint8]] = []
    errors: dict[int, str] = {}
    for place, picture in enumerate(chunk):
        try:
            values.append(decode(picture))
        except (ValueError, OSError) as error:
            errors[place] = str(error)
    stacked = np.stack(values) if values else np.empty(0, np.uint8)
    return Batch([picture.source for picture in chunk], stacked, errors)


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    sources: list[str] = []
    errors: dict[int, str] = {}
    for part in parts:
        errors |= {len(sources) + place: error for place, error in part.errors.items()}
        sources += part.sources
    values = [part.values for part in parts if len(part.values)]
    if len({one.dtype for one in values}) > 1:  # bytes of pictures beside floats of arrays
        values = [scaled(torch.from_numpy(one)).numpy() for one in values]
    return Batch(sources, np.concatenate(values) if values else np.empty(0, np.float32), errors)
