"""Rows of numbers in Arrow files: written in order, resumed file by file, read through the page cache.

A column of fixed-width rows lies in shards `logits-00000.arrow`, `logits-00001.arrow`, …; each holds one record
batch (id, view, row of values), so a mapped file is already the array. Rows are ordered view after view: sample
`row` of view `view` has the *position* `view * rows + row`. Every shard names the store it belongs to and its own
number, so that a shard of another store is noticed even where nobody compares checksums.

Shards, and not one file: a killed writer loses one of them, a checksum covers one, and a writer holds one in memory;
parts of a store can be made, sent and checked each by itself. What that costs a reader is measured in `_one_window`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from raydistill.errors import StoreError
from raydistill.runs.claims import is_there
from raydistill.runs.files import atomic_write, make_folder, read_json, sha256_file, write_json
from raydistill.runs.folder import remote_payload
from raydistill.runs.mirror import glance, remove, send, side_by_side

CHECK_ROWS = 1 << 16  # ids compared at once: half a megabyte of each view
WIDE = 64  # bytes of a row from which a shard comes only when it is read; of narrower ones a third are ids
MARK, HEAD = b"ARROW1\0\0", 1 << 12  # how an Arrow file begins, and at most where its first column does
ELEMENTS = {
    "float16": (pa.float16(), torch.float16),
    "float32": (pa.float32(), torch.float32),
    "uint16": (pa.uint16(), torch.uint16),  # words of the top-k form, which holds several types in one row
}


class Shard(BaseModel):
    """One file of a column: its plain name, its rows, its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    rows: int = Field(gt=0)
    sha256: str

    @field_validator("file")
    @classmethod
    def _stays_in_its_folder(cls, file: str) -> str:
        if file in ("", ".", "..") or Path(file).name != file:
            raise ValueError(f"`{file}` is not a plain file name inside the store's folder")
        return file


@dataclass(frozen=True)
class Layout:
    """What a column's shards look like, and which store (`identity`) they belong to."""

    column: str
    dtype: str
    width: int
    rows: int
    views: int
    identity: str

    @property
    def total(self) -> int:
        """Rows of all views together."""
        return self.rows * self.views

    def file(self, index: int) -> str:
        return f"{self.column}-{index:05d}.arrow"

    def schema(self, index: int) -> pa.Schema:
        # No nulls anywhere: then a column is its values alone, and its mapped bytes are the array.
        values = pa.list_(pa.field("item", ELEMENTS[self.dtype][0], nullable=False), self.width)
        fields = [("id", pa.int64()), ("view", pa.int32()), (self.column, values)]
        return pa.schema(
            [pa.field(name, kind, nullable=False) for name, kind in fields],
            metadata={"store": self.identity, "shard": str(index)},
        )


class Receipt(BaseModel):
    """That a shard is whole: what a writer trusts when it opens an unfinished folder. It stays when all is finished: a
    worker that comes too late sees that nothing is left to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    rows_per_shard: int
    shard: Shard


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


class ShardWriter:
    """Writes a column row by row; holds one shard in memory.

    After a cut, a new writer over the same folder keeps every shard up to the first whose checksum does not hold:
    continue with the row at position `rows_done`. Shards are cut at the same places every time, so the files come out
    the same. Where a column is `shared`, other processes write to it too, and each says which shard is its next one.
    """

    def __init__(self, folder: Path, layout: Layout, *, rows_per_shard: int, shared: bool = False) -> None:
        if rows_per_shard < 1:
            raise ValueError(f"a shard holds at least one row, not {rows_per_shard}")
        self.folder = make_folder(folder)
        self.layout = layout
        self.rows_per_shard = rows_per_shard
        self._is_shared = shared
        self._own: set[int] = set()  # known to be whole: written, or verified, by this very writer
        self._next, self._held = 0, 0
        if not shared:
            # Rows come in their order, so what follows a damaged shard is written again as well.
            while self._next < self.num_shards and self.verify(self._next):
                self._next += 1
            self._remove_the_rest()
        # A store of a hundred rows does not hold 65,536.
        capacity = min(rows_per_shard, max(layout.total, 1))
        self._ids = torch.empty(capacity, dtype=torch.int64)
        self._values = torch.empty(capacity, layout.width, dtype=ELEMENTS[layout.dtype][1])

    @property
    def num_shards(self) -> int:
        """How many shards the whole column has."""
        return -(-self.layout.total // self.rows_per_shard)

    @property
    def rows_done(self) -> int:
        """The position of the next row; all before it were taken, unless the column is shared."""
        return min(self._next * self.rows_per_shard, self.layout.total) + self._held

    def rows_of(self, index: int) -> range:
        """The positions in one shard."""
        start = index * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.layout.total))

    def seek(self, index: int) -> None:
        """Go on with the first row of a shard."""
        self._next, self._held = index, 0

    def rewind(self, rows: int) -> None:
        """Forget the shards after the first `rows`, which another column of the same store does not have yet."""
        self._next = min(self._next, -(-rows // self.rows_per_shard))
        self._remove_the_rest()

    def receipt(self, index: int) -> Shard | None:
        """The shard of this number, if somebody has written it."""
        try:
            path = self._receipt_path(index)
            glance(path)
            receipt = Receipt.model_validate(read_json(path))
        except (StoreError, ValidationError):
            return None  # nothing to go by: the rows are written again
        file, rows = self.layout.file(index), len(self.rows_of(index))
        same = (receipt.identity, receipt.rows_per_shard) == (self.layout.identity, self.rows_per_shard)
        is_this = (receipt.shard.file, receipt.shard.rows) == (file, rows)
        return receipt.shard if same and is_this and is_there(self.folder / file) else None

    def verify(self, index: int) -> bool:
        """Whether a shard is there, and its bytes are those that were written."""
        if index not in self._own:
            shard = self.receipt(index)
            if shard is None or sha256_file(self.folder / shard.file) != shard.sha256:
                return False
            self._own.add(index)
        return True

    def forget(self, index: int) -> None:
        """Take back that a shard is whole."""
        self._own.discard(index)
        self._receipt_path(index).unlink(missing_ok=True)
        remove(self._receipt_path(index))

    def append(self, ids: Tensor, values: Tensor) -> None:
        """Take the next rows: `ids` (B,) and `values` (B, width)."""
        if values.shape != (len(ids), self.layout.width):
            raise ValueError(f"expected values ({len(ids)}, {self.layout.width}), got {tuple(values.shape)}")
        if self.rows_done + len(ids) > self.layout.total:
            raise ValueError(f"more than the announced {self.layout.total} rows of `{self.layout.column}`")
        while len(ids):
            taken = min(len(ids), len(self._ids) - self._held)
            self._ids[self._held : self._held + taken] = ids[:taken]
            self._values[self._held : self._held + taken] = values[:taken]
            self._held += taken
            if self._held == self.rows_per_shard or self.rows_done == self.layout.total:
                self._write_shard()
            ids, values = ids[taken:], values[taken:]

    def close(self) -> tuple[Shard, ...]:
        """The finished shards; every view must have listed the same samples in the same order."""
        shards = [shard for index in range(self.num_shards) if (shard := self.receipt(index)) is not None]
        if (written := self._held + sum(shard.rows for shard in shards)) != self.layout.total:
            raise ValueError(f"{written} of {self.layout.total} rows of `{self.layout.column}` were written")
        column = ShardedRows(self.folder, self.layout, shards, verify_checksums=False)
        for view in range(1, self.layout.views):
            if not column.has_same_ids_in(view):
                raise ValueError(f"view {view} lists other samples than view 0, or in another order")
        self._next, self._held = self.num_shards, 0
        self._remove_the_rest()
        return tuple(shards)

    def _write_shard(self) -> None:
        index, file = self._next, self.layout.file(self._next)
        batch = self._batch(index, first=self.rows_done - self._held)
        with atomic_write(self.folder / file) as temporary:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            shard = Shard(file=file, rows=self._held, sha256=sha256_file(temporary))
        # The receipt comes after the file: a shard that has one is whole, one without is written again.
        receipt = Receipt(identity=self.layout.identity, rows_per_shard=self.rows_per_shard, shard=shard)
        write_json(self._receipt_path(index), receipt.model_dump(mode="json"))
        if self._is_shared:  # with workers on other machines; in this order there, too
            send(self.folder / file)
            send(self._receipt_path(index))
        self._own.add(index)
        self._next, self._held = index + 1, 0

    def _batch(self, index: int, *, first: int) -> pa.RecordBatch:
        schema = self.layout.schema(index)
        views = (np.arange(first, first + self._held) // self.layout.rows).astype(np.int32)
        values = pa.array(self._values[: self._held].numpy().reshape(-1))
        rows = pa.FixedSizeListArray.from_arrays(values, type=schema.field(self.layout.column).type)
        return pa.record_batch(
            [pa.array(self._ids[: self._held].numpy()), pa.array(views), rows], schema=schema
        )

    def _receipt_path(self, index: int) -> Path:
        return (self.folder / self.layout.file(index)).with_suffix(".json")

    def _remove_the_rest(self) -> None:
        """Remove what a killed writer left: half-written files, and shards from the next one on."""
        kept = {Path(self.layout.file(index)).stem for index in range(self._next)}
        for pattern in ("-*.arrow", "-*.json"):
            for path in self.folder.glob(f"{self.layout.column}{pattern}"):
                if path.stem not in kept:
                    path.unlink()
        for path in self.folder.glob(f".{self.layout.column}*.tmp"):
            path.unlink()


class ShardedRows:
    """A column's shards mapped into memory, gathered from as if they were one array.

    Of a store behind a URL only those come to this machine, and are mapped, of which a row is asked for. The ids lie in
    one piece at a shard's beginning, and those of the first view come by themselves: the others list the same samples.
    """

    def __init__(
        self, folder: Path, layout: Layout, shards: Sequence[Shard], *, verify_checksums: bool
    ) -> None:
        self.layout = layout
        self._folder, self._shards = folder, shards
        self._check_cut(folder, shards)
        self._rows_per_shard = shards[0].rows
        self._verifies = verify_checksums
        self._values: dict[int, np.ndarray] = {}
        is_wide = layout.width * ELEMENTS[layout.dtype][1].itemsize >= WIDE
        stage = remote_payload(folder)
        self._remote = stage if is_wide else None
        self._ids: dict[int, np.ndarray] = {}
        if self._remote is not None:
            return
        if stage is not None:
            stage.fetch_files([shard.file for shard in shards])
        self._ids = {index: self._map(index) for index in range(len(shards))}
        self._window, self._starts = _one_window(self._values, len(shards))

    def _map(self, index: int) -> np.ndarray:
        """Open a shard that is on this machine; returns its ids."""
        shard = self._shards[index]
        ids, self._values[index] = _open_shard(
            self._folder, self.layout, index, shard, verify_checksums=self._verifies
        )
        return ids

    def _ids_from_afar(self, index: int) -> np.ndarray:
        """The ids of a shard that is not here. What it holds besides is compared with its sum when it comes."""
        shard, stage = self._shards[index], self._remote
        assert stage is not None
        head = stage.read_range(shard.file, 0, HEAD + 8 * shard.rows)
        ids = _ids_at_beginning(head, self.layout.schema(index), shard.rows)
        if ids is None:
            raise StoreError(
                f"`{self._folder / shard.file}` is damaged, or a shard of another store; write these targets again"
            )
        return ids

    def _bring(self, shards: np.ndarray) -> None:
        """Have these shards on this machine, side by side, and map them."""
        new = [index for index in np.unique(shards).tolist() if index not in self._values]
        if (stage := self._remote) is None or not new:
            return
        stage.fetch_files([self._shards[index].file for index in new])
        for index in new:
            ids = self._map(index)
            if not np.array_equal(ids, self._ids.setdefault(index, ids)):
                raise StoreError(
                    f"`{self._folder / self._shards[index].file}` has changed meanwhile; begin again"
                )
        self._window, self._starts = _one_window(self._values, len(self._shards))
        if len(self._values) == len(self._shards):
            self._remote = None

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Copy the rows at `positions` (B,) into a new array (B, width), in the stored type."""
        if len(positions) and not 0 <= positions.min() <= positions.max() < self.layout.total:
            raise IndexError(f"positions outside of 0 … {self.layout.total - 1}")
        # All shards but the last have as many rows (`_check_cut`): a division finds the shard, no search is needed.
        shards = positions // self._rows_per_shard
        within = positions - shards * self._rows_per_shard
        if self._remote is not None:
            self._bring(shards if len(shards) else np.zeros(1, np.int64))
        return self._window[self._starts[shards] + within * self.layout.width]

    def ids_between(self, first: int, last: int) -> np.ndarray:
        """Sample ids at positions `first` … `last` - 1, copied."""
        size = self._rows_per_shard
        unknown = [index for index in range(first // size, -(-last // size)) if index not in self._ids]
        self._ids |= zip(unknown, side_by_side(self._ids_from_afar, unknown), strict=True)
        parts = [
            self._ids[index][max(first - index * size, 0) : last - index * size]
            for index in range(first // size, -(-last // size))
        ]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def has_same_ids_in(self, view: int) -> bool:
        """Whether `view` lists the same samples as view 0, in the same order."""
        offset = view * self.layout.rows
        for first in range(0, self.layout.rows, CHECK_ROWS):
            last = min(first + CHECK_ROWS, self.layout.rows)
            here, there = self.ids_between(first, last), self.ids_between(offset + first, offset + last)
            if not np.array_equal(here, there):
                return False
        return True

    def __reduce__(self) -> NoReturn:
        # Copied bytes would be the whole store, and a window over memory that is not there.
        raise TypeError("mapped shards do not travel between processes; open the store in each of them")

    def _check_cut(self, folder: Path, shards: Sequence[Shard]) -> None:
        """All shards but the last are equally long, so a division finds a row's shard."""
        sizes = [shard.rows for shard in shards]
        if sum(sizes) != self.layout.total:
            raise StoreError(
                f"`{folder}` lists {sum(sizes)} rows of `{self.layout.column}`, but {self.layout.rows} samples in"
                f" {self.layout.views} view(s) make {self.layout.total}; write these targets again"
            )
        if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
            raise StoreError(f"`{folder}` lists shards of unequal length; write these targets again")


def _open_shard(
    folder: Path, layout: Layout, index: int, shard: Shard, *, verify_checksums: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Views of a mapped shard: ids (rows,) and values (rows, width)."""
    path = folder / shard.file
    # A manifest may come from somebody else, and a link in the folder too.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"`{path}` leads out of the store's folder; write these targets again")
    if not path.is_file():
        raise StoreError(f"`{path}` is missing; write these targets again")
    if verify_checksums and sha256_file(path) != shard.sha256:
        raise StoreError(f"`{path}` is damaged: its SHA-256 is not the manifest's; write these targets again")
    # Also without checksums, which take 0.7 s a GB, each of these costs nothing, and finds shards that were mixed up.
    batch = _map_batch(path)
    if not batch.schema.equals(layout.schema(index), check_metadata=True):
        raise StoreError(
            f"`{path}` is a shard of another store, or of another place; write these targets again"
        )
    if batch.num_rows != shard.rows:
        raise StoreError(
            f"`{path}` holds {batch.num_rows} rows, the manifest says {shard.rows}; write it again"
        )
    ids, values = batch.column("id"), batch.column(layout.column).values
    if ids.null_count or values.null_count:
        raise StoreError(f"`{path}` has empty places; write these targets again")
    return ids.to_numpy(zero_copy_only=True), values.to_numpy(zero_copy_only=True).reshape(-1, layout.width)


def _map_batch(path: Path) -> pa.RecordBatch:
    try:
        # The arrays keep the mapping alive; the file itself is closed, so many shards need no open files.
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches != 1:
                raise StoreError(f"`{path}` holds {reader.num_record_batches} record batches, not one")
            batch = reader.get_batch(0)
        batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"`{path}` is damaged: {error}; write these targets again") from error
    return batch


def _ids_at_beginning(head: bytes, schema: pa.Schema, rows: int) -> np.ndarray | None:
    """The ids of a shard from its first bytes: a mark, the schema, a description of the one record batch, and then its
    columns, of which ids without nulls are the first. None where it is no such file."""
    place, parts = len(MARK), []
    for _ in range(2):
        if head[: len(MARK)] != MARK or head[place : place + 4] != b"\xff" * 4:
            return None
        size = int.from_bytes(head[place + 4 : place + 8], "little")
        parts.append(head[place : place + 8 + size])
        place += 8 + size
    try:
        if not pa.ipc.read_schema(pa.py_buffer(parts[0])).equals(schema, check_metadata=True):
            return None
    except (pa.ArrowException, OSError):
        return None
    ids = head[place : place + 8 * rows]
    return np.frombuffer(ids, dtype=np.int64) if len(ids) == 8 * rows else None


def _one_window(arrays: Mapping[int, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """A view in which row `starts[s]` + width · i is row i of array s of `count`: one fancy index reads from all.

    A thousand mapped files would otherwise cost a thousand numpy calls for a batch (measured: with 77 shards,
    512 rows x 100 classes take 158 µs shard by shard, 77 µs this way, 75 µs from a single memmap). The window
    starts at the array that lies lowest in memory and may start at any element; what lies between the arrays is
    not ours, so `gather` checks the bounds of what it asks for.
    """
    lowest = min(arrays.values(), key=lambda array: array.ctypes.data)
    item, width = lowest.itemsize, lowest.shape[1]
    starts = np.zeros(count, dtype=np.int64)
    for index, array in arrays.items():
        starts[index] = (array.ctypes.data - lowest.ctypes.data) // item
    ends = [int(starts[index]) + array.size for index, array in arrays.items()]
    shape = (max(ends) - width + 1, width)
    return np.lib.stride_tricks.as_strided(lowest, shape, (item, item), writeable=False), starts
