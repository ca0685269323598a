"""Stored targets as a file for other programs: .npz, .safetensors or .parquet, written block by block."""

import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from raydistill.errors import StoreError
from raydistill.runs.files import atomic_write
from raydistill.targets.reader import Targets

BLOCK_ELEMENTS = 1 << 20
SAFETENSORS_TYPES = {"int64": "I64", "int32": "I32", "float32": "F32"}


@dataclass(frozen=True)
class Column:
    """An array of the file: its type, the shape of a row, and its rows (B, ...) of positions `first` to `last`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: Callable[[int, int], NDArray[Any]]


def write_targets(targets: Targets, file: Path, names: Mapping[int, str] | None) -> None:
    """Write every row of every view: `ids`, `names` where they are known, `view`, and `logits` (N, C) as float32.

    Features have columns of their own, (N, numbers), under their names. Of a top-k store it is `indices` and
    `log_probabilities` (N, k) in place of logits: of the other classes the mass at T = 1 is what they leave.
    `StoreError` for another ending, and for a mean that depends on the temperature.
    """
    if targets.num_teachers > 1:
        raise StoreError(
            "an arithmetic mean depends on the temperature, so it has no logits of its own; export the targets that it"
            " is made of, or combine them with `rule: geometric`"
        )
    if file.suffix not in _WRITERS:
        raise StoreError(f"`{file}` has an unknown kind; known are {', '.join(_WRITERS)}")
    columns = _columns(targets, names if file.suffix != ".safetensors" else None)
    total = targets.description.rows * targets.description.views_stored
    with atomic_write(file) as temporary:
        _WRITERS[file.suffix](temporary, columns, total)


def _columns(targets: Targets, names: Mapping[int, str] | None) -> dict[str, Column]:
    rows, ids = targets.description.rows, targets.ids.numpy()

    def ids_of(first: int, last: int) -> NDArray[Any]:
        return ids[np.arange(first, last) % rows]

    def by_view(
        read: Callable[[torch.Tensor, int], torch.Tensor], dtype: str
    ) -> Callable[[int, int], NDArray[Any]]:
        def between(first: int, last: int) -> NDArray[Any]:
            parts = []
            while first < last:  # a block may end one view and begin the next
                view, end = first // rows, min(last, (first // rows + 1) * rows)
                wanted = torch.arange(first - view * rows, end - view * rows)
                parts.append(read(wanted, view).numpy().astype(dtype))
                first = end
            return np.concatenate(parts)

        return between

    columns = {"ids": Column(np.dtype(np.int64), (), ids_of)}
    if names is not None:
        texts = np.array([names.get(number, "") for number in ids.tolist()], dtype=str)
        columns["names"] = Column(texts.dtype, (), lambda first, last: texts[np.arange(first, last) % rows])
    view_of = lambda first, last: (np.arange(first, last) // rows).astype(np.int32)  # noqa: E731
    columns["view"] = Column(np.dtype(np.int32), (), view_of)
    for name, shape in targets.feature_shapes.items():
        read = by_view(partial(_feature, targets, name), "float32")
        columns[name] = Column(np.dtype(np.float32), (math.prod(shape),), read)
    if not targets.num_teachers:
        return columns
    if targets.top_k is None:
        read = by_view(lambda wanted, view: targets.read(wanted, view).logits[:, 0], "float32")
        return columns | {"logits": Column(np.dtype(np.float32), (targets.num_classes,), read)}
    kept = (targets.top_k.kept,)
    classes = by_view(lambda wanted, view: targets.kept(wanted, view).classes, "int32")
    logs = by_view(lambda wanted, view: targets.kept(wanted, view).log_probabilities, "float32")
    return columns | {
        "indices": Column(np.dtype(np.int32), kept, classes),
        "log_probabilities": Column(np.dtype(np.float32), kept, logs),
    }


def _feature(targets: Targets, name: str, rows: torch.Tensor, view: int) -> torch.Tensor:
    return targets.features([name], rows, view)[name].flatten(1)


def _blocks(column: Column, total: int, size: int) -> Iterator[NDArray[Any]]:
    for first in range(0, total, size):
        yield column.rows(first, min(first + size, total))


def _size(columns: Mapping[str, Column]) -> int:
    return max(1, BLOCK_ELEMENTS // max(math.prod(column.shape) for column in columns.values()))


def _write_npz(file: Path, columns: Mapping[str, Column], total: int) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                header = {
                    "descr": np.lib.format.dtype_to_descr(column.dtype),
                    "fortran_order": False,
                    "shape": (total, *column.shape),
                }
                np.lib.format.write_array_header_1_0(stream, header)
                for block in _blocks(column, total, _size(columns)):
                    stream.write(np.ascontiguousarray(block).tobytes())


def _write_safetensors(file: Path, columns: Mapping[str, Column], total: int) -> None:
    header, end = {}, 0
    for name, column in columns.items():
        begin, end = end, end + total * math.prod(column.shape) * column.dtype.itemsize
        dtype = SAFETENSORS_TYPES[column.dtype.name]
        header[name] = {"dtype": dtype, "shape": [total, *column.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at whole words
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for column in columns.values():
            for block in _blocks(column, total, _size(columns)):
                stream.write(np.ascontiguousarray(block).tobytes())


def _write_parquet(file: Path, columns: Mapping[str, Column], total: int) -> None:
    def field(column: Column) -> pa.DataType:
        kind = pa.string() if column.dtype.kind == "U" else pa.from_numpy_dtype(column.dtype)
        return pa.list_(kind, column.shape[0]) if column.shape else kind

    schema = pa.schema([(name, field(column)) for name, column in columns.items()])
    parts = zip(*(_blocks(column, total, _size(columns)) for column in columns.values()), strict=True)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for blocks in parts:
            arrays = [
                pa.array(block)
                if block.ndim == 1
                else pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1])
                for block in blocks
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


_WRITERS: dict[str, Callable[[Path, Mapping[str, Column], int], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}
