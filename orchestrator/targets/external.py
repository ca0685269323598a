"""Predictions in a file of somebody else's: its rows are matched with samples, checked, and read as logits.

The rows lie in any order, and a compressed array can be read only from front to end. So they are read once, block by
block, and put where the samples stand in a file on the disk; memory holds one block.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydistill.errors import StageError
from raydistill.tasks.array_files import array_names, blocks_of, open_array, shape_of

BLOCK_ELEMENTS = 1 << 20
LEAST_PROBABILITY = 1e-8
"""What a probability of 0 becomes: a logarithm must be stored."""
SUM_SLACK = 1e-2  # float16 probabilities of 1,000 classes sum to 1 within 5e-3
NAMED = 3

Gives = Literal["logits", "probabilities", "log_probabilities", "embedding"]
NUMBERS: tuple[Gives, ...] = ("logits", "embedding")
"""Any that are finite."""
GIVEN: tuple[Gives, ...] = ("logits", "probabilities", "log_probabilities")
Names = NDArray[np.int64] | NDArray[np.str_]


@dataclass(frozen=True)
class Predictions:
    """Where a file has what: of every row a prediction of `num_classes` classes, or of as many as `indices` has."""

    file: Path
    ids: str
    values: str
    indices: str | None
    gives: Gives
    is_told: bool
    """Whether the user said what the values are."""
    num_classes: int
    width: int
    rows: int

    def read_ids(self) -> Names:
        """Ids (N,), numbers or text."""
        beside = Path(self.ids).expanduser() if self.file.suffix == ".npy" else None
        if beside is None:
            ids = open_array(self.file, self.ids)
        elif beside.suffix == ".npy":
            ids = _open_npy(beside)
        else:
            ids = np.array(beside.read_text(encoding="utf-8").splitlines(), dtype=str)
        if ids.shape != (self.rows,):
            raise StageError(
                f"`{self.file}` has {self.rows} rows of `{self.values}`, but ids of shape {ids.shape}; give one"
                " id a row"
            )
        if ids.dtype.kind in "SU":
            return ids.astype(str)
        if ids.dtype.kind not in "iu":
            raise StageError(f"ids are whole numbers or text; `{self.ids}` of `{self.file}` is {ids.dtype}")
        return ids.astype(np.int64)

    def blocks(self) -> Iterator[tuple[int, NDArray[Any], NDArray[Any] | None]]:
        """First row, values (B, W) and with `indices` the classes (B, W) they are of, in the file's order."""
        size = max(1, BLOCK_ELEMENTS // max(self.width, 1))
        first = 0
        if self.file.suffix == ".npy":
            whole = _open_npy(self.file)
            for first in range(0, self.rows, size):
                yield first, np.array(whole[first : first + size]), None
            return
        parts = blocks_of(self.file, self.values, size)
        classes = None if self.indices is None else blocks_of(self.file, self.indices, size)
        while True:
            try:
                block, numbers = next(parts, None), None if classes is None else next(classes, None)
            except (OSError, ValueError) as error:
                raise StageError(" ".join(str(error).split())) from error
            if block is None:
                return
            yield first, block, numbers
            first += len(block)

    def logits(self, values: NDArray[Any], classes: NDArray[Any] | None) -> Tensor:
        """Logits (B, C) of rows that passed `problem`; probabilities are logarithms from float64; or an embedding
        (B, W)."""
        if self.gives in NUMBERS:
            return torch.from_numpy(values.astype(np.float32))
        logs = _logarithms(values.astype(np.float64), self.gives)
        if classes is not None:
            others = self.num_classes - self.width
            rest = np.clip(1 - np.exp(logs).sum(axis=1, keepdims=True), 0, 1) / max(others, 1)
            full = np.repeat(
                np.log(np.maximum(rest, LEAST_PROBABILITY / max(others, 1))), self.num_classes, axis=1
            )
            np.put_along_axis(full, classes.astype(np.int64), logs, axis=1)
            logs = full
        return torch.from_numpy(logs.astype(np.float32))

    def problem(self, values: NDArray[Any], classes: NDArray[Any] | None) -> tuple[int, str] | None:
        """The first of some rows that cannot be used, and why."""
        numbers = values.astype(np.float64)
        is_bad = ~np.isfinite(numbers)
        if self.gives == "log_probabilities":
            is_bad &= numbers != -np.inf  # a probability of 0
        checks = [(is_bad.any(axis=1), "has a value that is not finite")]
        if self.gives not in NUMBERS:
            shares = np.exp(numbers) if self.gives == "log_probabilities" else numbers
            sums = shares.sum(axis=1)
            is_off = sums > 1 + SUM_SLACK if classes is not None else np.abs(sums - 1) > SUM_SLACK
            checks += [
                (
                    (shares < 0).any(axis=1),
                    "has a negative probability; write `gives: logits` if these are logits",
                ),
                (is_off, "has probabilities that do not sum to 1; write `gives: logits` if these are logits"),
            ]
        if classes is not None:
            ordered = np.sort(classes, axis=1)
            checks += [
                (
                    ((classes < 0) | (classes >= self.num_classes)).any(axis=1),
                    f"names a class beyond 0 to {self.num_classes - 1}",
                ),
                ((ordered[:, 1:] == ordered[:, :-1]).any(axis=1), "names a class twice"),
            ]
        return next(((int(where.argmax()), why) for where, why in checks if where.any()), None)

    def looks_like_probabilities(self, values: NDArray[Any]) -> bool:
        """Whether rows that are called logits are probabilities: none below 0, sums of 1."""
        numbers = values.astype(np.float64)
        return self.gives == "logits" and bool(
            (numbers >= 0).all() and (np.abs(numbers.sum(axis=1) - 1) < 1e-3).all()
        )


def _logarithms(values: NDArray[np.float64], gives: Gives) -> NDArray[np.float64]:
    if gives == "log_probabilities":
        return np.maximum(values, math.log(LEAST_PROBABILITY))
    return np.log(np.maximum(values, LEAST_PROBABILITY))


def open_predictions(
    file: Path, ids: str, values: str | None, indices: str | None, gives: Gives | None, num_classes: int
) -> Predictions:
    """Find the arrays of a file and compare their shapes; `StageError` says what does not fit."""
    try:
        if file.suffix == ".npy":
            name, shape = values or gives or "logits", _open_npy(file).shape
        else:
            known = array_names(file)
            usual = (gives,) if gives == "embedding" else GIVEN
            name = values or next((name for name in usual if name in known), usual[0])
            shape = shape_of(file, name)
        if indices is not None and (other := shape_of(file, indices)) != shape:
            raise StageError(
                f"`{file}`: `{name}` has the shape {shape} and `{indices}` {other}; they go together"
            )
    except (OSError, ValueError) as error:
        raise StageError(str(error)) from error
    named: Gives = next((kind for kind in GIVEN if kind == name), "logits")
    found = named if gives is None else gives
    if found == "embedding" and len(shape) == 2:
        num_classes = shape[1]
    if len(shape) != 2 or (shape[1] != num_classes if indices is None else shape[1] > num_classes):
        raise StageError(
            f"`{name}` of `{file}` has the shape {shape}, but there are {num_classes} classes; give a row of"
            f" {num_classes} for each sample, `classes` for a teacher of others, or `indices` for the most probable"
        )
    if indices is not None and found == "logits":
        raise StageError(
            f"`{file}`: logits of some classes do not tell what is left for the others; give probabilities"
        )
    return Predictions(file, ids, name, indices, found, gives is not None, num_classes, shape[1], shape[0])


def _open_npy(file: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StageError(f"`{file}` cannot be read: {error}") from error
    return found


@dataclass(frozen=True)
class Match:
    """For each row of a file the place of its sample in the transfer set, or -1; `unknown` ids are no sample's."""

    places: NDArray[np.int64]
    unknown: tuple[str, ...]


def match_rows(
    predictions: Predictions,
    wanted: NDArray[np.int64],
    everybody: NDArray[np.int64],
    names: Mapping[int, str] | None,
) -> Match:
    """Where the file's rows belong: `wanted` (N,) are the transfer set's ids, `everybody`'s those of all splits.

    With `names`, the samples' paths by their ids, texts are paths or file names. `StageError` for a sample that is
    missing or stands twice.
    """
    given = predictions.read_ids()
    ids = _as_numbers(given, predictions, names)
    order = wanted.argsort(kind="stable")
    at = np.minimum(np.searchsorted(wanted[order], ids), len(wanted) - 1)
    places = np.where(wanted[order][at] == ids, order[at], -1).astype(np.int64)
    is_unknown = ~np.isin(ids, everybody)
    counts = np.bincount(places[places >= 0], minlength=len(wanted))
    if (counts > 1).any():
        place = int(counts.argmax())
        row = int((places == place).argmax())
        raise StageError(
            f"`{predictions.file}` has {int(counts[place])} rows for `{given[row]}` ({int((counts > 1).sum())} samples"
            " stand more than once); keep one of each"
        )
    if missing := int((counts == 0).sum()):
        first = int(wanted[int((counts == 0).argmax())])
        named = first if names is None else names.get(first, first)
        has = ", ".join(f"`{each}`" for each in given[:NAMED].tolist())
        raise StageError(
            f"`{predictions.file}` has no row for {missing} of {len(wanted)} samples ({missing / len(wanted):.0%}; the"
            f" first: `{named}`), and {int(is_unknown.sum())} of its {len(ids)} ids are no sample's (it has {has}, …);"
            " add the missing ones, or leave these samples out with `transfer`"
        )
    return Match(places, tuple(str(each) for each in given[is_unknown].tolist()))


def _as_numbers(given: Names, predictions: Predictions, names: Mapping[int, str] | None) -> NDArray[np.int64]:
    if given.dtype.kind != "U":
        return given.astype(np.int64)
    texts = [str(each).strip().replace("\\", "/").removeprefix("./") for each in given.tolist()]
    if names is None:
        try:
            return np.array([int(text) for text in texts], dtype=np.int64)
        except ValueError as error:
            raise StageError(
                f"the samples of this task are known by numbers, but `{predictions.file}` has ids such as"
                f" `{texts[0]}`; give the numbers"
            ) from error
    levels = [_by_text(names, texts, depth) for depth in range(3)]
    return max(levels, key=lambda level: int((level >= 0).sum()))


def _by_text(names: Mapping[int, str], texts: Sequence[str], depth: int) -> NDArray[np.int64]:
    """Ids (N,) of paths, as they are, without the split's folder, or by the file name alone; -1 where that is not one
    sample's."""
    parts = {0: slice(None), 1: slice(1, None), 2: slice(-1, None)}[depth]
    known: dict[str, int] = {}
    for number, name in names.items():
        key = "/".join(PurePosixPath(name).parts[parts])
        known[key] = -1 if key in known else number
    lookup = [PurePosixPath(text).name for text in texts] if depth == 2 else texts
    return np.array([known.get(text, -1) for text in lookup], dtype=np.int64)
