"""Named arrays in one file (.npz, .safetensors, .parquet), or one without a name (.npy), opened one at a time and
without pickle."""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.shard_names import refuse_pointer

ROWS_AT_ONCE = 4096
WHOLE = 2.0**53  # the whole numbers below are floats


def array_names(file: Path) -> list[str]:
    """Names of the arrays or columns in a file; `ValueError` when its kind is unknown or it is damaged."""
    return _open(file).names()


def open_array(file: Path, name: str) -> NDArray[Any]:
    """One array, rows first; `ValueError` says which names there are when `name` is not one of them."""
    with _named(file, name) as source:
        return source.read(name)


def open_labels(file: Path, name: str) -> NDArray[Any]:
    """One column of labels (N,), with `UNLABELLED` in the cells that are empty, or NaN among whole numbers."""
    with _named(file, name) as source:
        values: NDArray[Any] = getattr(source, "read_with_gaps", source.read)(name)
    return whole_labels(values)


def whole_labels(values: NDArray[Any]) -> NDArray[Any]:
    """Labels with `UNLABELLED` in place of NaN among whole numbers; whatever else they are stays."""
    if values.ndim != 1 or values.dtype.kind != "f" or not (gaps := np.isnan(values)).any():
        return values
    known = values[~gaps]
    if not ((np.abs(known) < WHOLE) & (known == np.trunc(known))).all():
        return values
    return np.where(gaps, UNLABELLED, values).astype(np.int64)


def read_matrix(file: Path, name: str | None = None) -> NDArray[np.float32]:
    """A matrix of numbers: the array of that name or the only one, or a .npy file. `ValueError` for what is none."""
    if not file.is_file():
        raise ValueError(f"there is no file `{file}`")
    if file.suffix == ".npy":
        try:
            found = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"`{file}` cannot be read: {error}") from error
    else:
        names = array_names(file)
        if name is None and len(names) != 1:
            known = ", ".join(f"`{known}`" for known in names)
            raise ValueError(f"`{file}` has {len(names)} arrays, {known}; say which with `array`")
        found = open_array(file, name or names[0])
    if found.ndim != 2 or found.dtype.kind not in "fiu" or 0 in found.shape:
        raise ValueError(f"`{file}` holds {found.dtype} of the shape {found.shape}, not a matrix of numbers")
    matrix: NDArray[np.float32] = found.astype(np.float32)
    if not np.isfinite(matrix).all():
        raise ValueError(f"`{file}` holds numbers that are not finite")
    return matrix


def shape_of(file: Path, name: str) -> tuple[int, ...]:
    """The shape of an array, rows first, from headers where the format has them."""
    with _named(file, name) as source:
        return source.shape(name)


def blocks_of(file: Path, name: str, rows: int) -> Iterator[NDArray[Any]]:
    """An array block by block, `rows` rows at most; in memory as a whole only where its file lays columns first."""
    with _named(file, name) as source:
        yield from source.blocks(name, rows)


def dtype_of(file: Path, name: str) -> np.dtype[Any]:
    """What an array is made of, from headers where the format has them."""
    with _named(file, name) as source:
        dtype: np.dtype[Any] = source.dtype(name)
        return dtype


def digest_rows(columns: Sequence[NDArray[Any]], chosen: NDArray[np.bool_]) -> str:
    """Hexadecimal SHA-256 of the rows that a mask (N,) marks, in their order, with the columns' types and shapes."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(f"{column.dtype.str} {column.shape[1:]} {int(chosen.sum())}\n".encode())
        for start in range(0, len(column), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            digest.update(np.ascontiguousarray(column[block][chosen[block]]).tobytes())
    return digest.hexdigest()


class _Npz:
    def __init__(self, file: Path) -> None:
        self.file = file
        with zipfile.ZipFile(file) as archive:
            self.members = [name.removesuffix(".npy") for name in archive.namelist()]

    def names(self) -> list[str]:
        return self.members

    def read(self, name: str) -> NDArray[Any]:
        with np.load(self.file, allow_pickle=False) as archive:
            return archive[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._header(name)[0]

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._header(name)[2]

    def blocks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        shape, is_fortran, dtype = self._header(name)
        if is_fortran or dtype.hasobject or 0 in shape:
            whole = self.read(name)
            yield from (whole[start : start + rows] for start in range(0, len(whole), rows))
            return
        with zipfile.ZipFile(self.file) as archive, archive.open(f"{name}.npy") as stream:
            read_header(stream)
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                size = count * math.prod(shape[1:]) * dtype.itemsize
                if len(data := stream.read(size)) < size:
                    raise ValueError(f"it ends in row {start + len(data) * count // size}")
                yield np.frombuffer(data, dtype).reshape(count, *shape[1:])

    def _header(self, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        with zipfile.ZipFile(self.file) as archive, archive.open(f"{name}.npy") as stream:
            return read_header(stream)


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type, as a .npy begins."""
    is_first = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
    return read(stream)


class _Npy:
    """One array, whatever it is asked for by."""

    def __init__(self, file: Path) -> None:
        self.array = map_npy(file)

    def names(self) -> list[str]:
        return []

    def read(self, name: str) -> NDArray[Any]:
        return self.array

    def shape(self, name: str) -> tuple[int, ...]:
        return self.array.shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.array.dtype

    def blocks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        yield from (self.array[start : start + rows] for start in range(0, len(self.array), rows))


def map_npy(file: Path) -> NDArray[Any]:
    """The array of a .npy, which is read where it lies. `ValueError` for what is none, or would need pickle."""
    refuse_pointer(file)
    try:
        found: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy parses headers as Python, and raises what that raises
        if "object" in str(error):
            raise ValueError(
                f"`{file}` holds Python objects, which only code could read; save numbers"
            ) from error
        raise ValueError(f"`{file}` is truncated or no .npy: {' '.join(str(error).split())}") from error
    if not found.ndim:
        raise ValueError(f"`{file}` holds a single number, no rows")
    return found


class _Safetensors:
    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        self.file = file
        self.opened = safe_open(file, framework="numpy")

    def names(self) -> list[str]:
        return list(self.opened.keys())

    def read(self, name: str) -> NDArray[Any]:
        return self.opened.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.opened.get_slice(name).get_shape())

    def dtype(self, name: str) -> np.dtype[Any]:
        first: NDArray[Any] = self.opened.get_slice(name)[:1]
        return first.dtype

    def blocks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        part = self.opened.get_slice(name)
        if part.get_dtype() == "BF16":  # which numpy does not have
            yield from self._halves(name, rows)
            return
        count = part.get_shape()[0]
        yield from (part[start : min(start + rows, count)] for start in range(0, count, rows))

    def _halves(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as opened:
            part = opened.get_slice(name)
            count = part.get_shape()[0]
            for start in range(0, count, rows):
                yield part[start : min(start + rows, count)].float().numpy()


class _Parquet:
    def __init__(self, file: Path) -> None:
        import pyarrow.parquet

        self.opened = pyarrow.parquet.ParquetFile(file)

    def names(self) -> list[str]:
        return list(self.opened.schema_arrow.names)

    def read(self, name: str) -> NDArray[Any]:
        return column_array(self.opened.read(columns=[name]).column(0))

    def read_with_gaps(self, name: str) -> NDArray[Any]:
        """`read`, where an empty cell of a column of numbers is NaN."""
        import pyarrow

        column = self.opened.read(columns=[name]).column(0)
        is_number = pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)
        if column.null_count and is_number:
            gaps: NDArray[Any] = column.to_numpy().astype(np.float64)
            return gaps
        return column_array(column)

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.opened.metadata.num_rows, *self._first(name).shape[1:])

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._first(name).dtype

    def blocks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        for batch in self.opened.iter_batches(batch_size=rows, columns=[name]):
            yield column_array(batch.column(0))

    def _first(self, name: str) -> NDArray[Any]:
        if not self.opened.metadata.num_rows:
            raise ValueError("it has no rows")
        return column_array(next(self.opened.iter_batches(batch_size=1, columns=[name])).column(0))


def column_array(column: Any) -> NDArray[Any]:
    """Numbers (N,) or, from lists of equal length at every level, (N, a, b, ...)."""
    import pyarrow

    values = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    shape = [len(values)]
    while pyarrow.types.is_nested(values.type):
        flat = values.flatten()
        if values.null_count or len(flat) % max(len(values), 1):
            raise ValueError("its lists are not all of one length")
        if len(values.value_lengths().unique()) > 1:
            raise ValueError("its lists are not all of one length")
        shape.append(len(flat) // max(len(values), 1))
        values = flat
    if values.null_count:
        raise ValueError("it has empty cells")
    flat_values = values.to_numpy(zero_copy_only=False)
    return (flat_values.astype(str) if flat_values.dtype == object else flat_values).reshape(shape)


_FORMATS: dict[str, Any] = {".npz": _Npz, ".safetensors": _Safetensors, ".parquet": _Parquet}


def _open(file: Path) -> Any:
    if file.suffix == ".npy":
        return _Npy(file)
    if file.suffix not in _FORMATS:
        raise ValueError(f"`{file}` has an unknown kind; known are {', '.join((*_FORMATS, '.npy'))}")
    try:
        return _FORMATS[file.suffix](file)
    except OSError:
        raise
    except Exception as error:  # each format's own error for a damaged file
        raise ValueError(f"`{file}` is damaged or no {file.suffix} file: {error}") from error


@contextmanager
def _named(file: Path, name: str) -> Iterator[Any]:
    """The file's reader, for one of its names; whatever goes wrong in it becomes a `ValueError` with both."""
    source = _open(file)
    names = source.names()
    if names and name not in names:
        raise ValueError(f"`{file}` has no `{name}`; it has {', '.join(f'`{known}`' for known in names)}")
    try:
        yield source
    except (ValueError, TypeError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"`{name}` of `{file}` cannot be read: {error}") from error
