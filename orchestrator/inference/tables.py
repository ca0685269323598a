"""Inputs in tables, CSV and Parquet: columns of numbers, or pictures, by their paths or as bytes."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydistill.errors import PlanError
from raydistill.inference.batches import Batch, Picture, failed
from raydistill.inference.form import BESIDE_INPUTS, Form
from raydistill.tasks.array_files import column_array
from raydistill.tasks.csv_table import CsvTable, opened_csv, path_below
from raydistill.tasks.parquet_pictures import encoded_pictures
from raydistill.tasks.picture_files import printable
from raydistill.tasks.pixel_cache import pixel_rows
from raydistill.tasks.shard_names import refuse_pointer
from raydistill.tasks.shards import opened_shard
from raydistill.training.evaluation import BATCH


def read_csv(file: Path, form: Form) -> Iterator[Picture | Batch]:
    """The pictures that a table lists, or its rows of numbers."""
    with opened_csv(file) as table:
        yield from _listed_pictures(file, table, form) if form.takes_pictures else _rows(file, table, form)


def read_parquet(file: Path, form: Form) -> Iterator[Picture | Batch]:
    """The pictures in a table, or its rows of numbers."""
    refuse_pointer(file)
    with opened_shard(file) as opened:
        schema = opened.schema_arrow
        names = _number_columns(file, schema, form)
        if names is not None:
            yield from _numbers(file, opened.iter_batches(BATCH, columns=names), names, form)
            return
    if "pixels" in schema.names and not form.columns:
        start = 0
        for pixels in pixel_rows(file, form.shape, BATCH):
            yield form.batch(file, start, pixels)
            start += len(pixels)
        return
    yield from _pictures(file, _picture_column(schema.names, form))


def _listed_pictures(file: Path, table: CsvTable, form: Form) -> Iterator[Picture | Batch]:
    column = form.columns[0] if form.columns else form.option("path") or "path"
    if column not in table.header:
        there = ", ".join(f"`{printable(name)}`" for name in table.header)
        raise PlanError(
            f"`{file}` has no column `{column}`, it has {there}; name the one with paths of pictures with `--column`"
        )
    place, root = table.header.index(column), form.folder or file.parent
    for cells in table:
        path = cells[place].strip()
        try:
            yield Picture(path, root / path_below(path, file, table.line))
        except ValueError as error:
            yield failed(path, error)


def _rows(file: Path, table: CsvTable, form: Form) -> Iterator[Batch]:
    header, rows = table.header, iter(table)
    first = next(rows, None)
    if all(map(_is_number, header)):  # there is no header
        names = [f"{number}" for number in range(len(header))]
        rows = chain([header], [] if first is None else [first], rows)
    else:
        names = header
        rows = chain([] if first is None else [first], rows)
    numeric = [name for name, cell in zip(names, first or names, strict=True) if _is_number(cell)]
    places = [names.index(name) for name in _chosen(file, names, numeric, form)]
    start = 0
    while block := list(islice(rows, BATCH)):
        yield _row_batch(file, start, [[cells[place] for place in places] for cells in block], form)
        start += len(block)


def _row_batch(file: Path, start: int, cells: list[list[str]], form: Form) -> Batch:
    """Cells of numbers; a row with another one is an error of its own."""
    dtype = np.int64 if form.dtype == torch.int64 else np.float32
    errors: dict[int, str] = {}
    try:
        values = np.array(cells, dtype=dtype)
    except (ValueError, OverflowError):
        for place, row in enumerate(cells):
            try:
                np.array(row, dtype=dtype)
            except (ValueError, OverflowError):
                wrong = next((cell for cell in row if not _is_number(cell)), " ".join(row[:9]))
                what = f"`{printable(wrong)}` is no number" if wrong.strip() else "a cell is empty"
                whole = "" if dtype == np.float32 else " and whole, as the model's inputs are"
                errors[place] = f"row {start + place} of `{file}`: {what}{whole}"
        kept = [row for place, row in enumerate(cells) if place not in errors]
        values = np.array(kept, dtype=dtype)
    sources = [f"{file}[{start + place}]" for place in range(len(cells))]
    readable = [place for place in range(len(cells)) if place not in errors]
    if not readable:
        return Batch(sources, values, errors)
    batch = form.batch(file, 0, values.reshape(-1, *form.shape))
    errors |= {readable[place]: f"`{sources[readable[place]]}` is not finite" for place in batch.errors}
    return Batch(sources, batch.values, errors)


def _chosen(file: Path, names: Sequence[str], numeric: Sequence[str], form: Form) -> list[str]:
    """The columns that are inputs: those asked for, or all with numbers but what stands beside inputs."""
    wanted = int(np.prod(form.shape))
    beside = {*BESIDE_INPUTS, *filter(None, map(form.option, ("labels", "ids", "split", "groups")))}
    chosen = list(form.columns) or [name for name in numeric if name not in beside]
    for name in chosen:
        if name not in names:
            there = ", ".join(f"`{printable(one)}`" for one in names[:20])
            raise PlanError(f"`{file}` has no column `{name}`, it has {there}")
    if len(chosen) != wanted:
        shown = ", ".join(f"`{printable(name)}`" for name in chosen[:20])
        raise PlanError(
            f"`{file}` has {len(chosen)} columns of numbers ({shown}), and the model takes {wanted} numbers; name"
            " them in their order, each with `--column`"
        )
    return chosen


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number_columns(file: Path, schema: Any, form: Form) -> list[str] | None:
    """The columns whose numbers are inputs; None where the table has pictures."""
    if form.takes_pictures:
        column = form.columns[0] if form.columns else form.option("inputs")
        is_numbers = column in schema.names and _holds_numbers(schema.field(column).type)
        return [column] if is_numbers and column is not None else None
    if not form.columns and (inputs := form.option("inputs") or "inputs") in schema.names:
        return [inputs]
    if len(form.columns) == 1 and form.columns[0] in schema.names:
        return list(form.columns)
    numeric = [name for name in schema.names if _holds_numbers(schema.field(name).type, is_flat=True)]
    return _chosen(file, schema.names, numeric, form)


def _holds_numbers(kind: Any, *, is_flat: bool = False) -> bool:
    """Whether a column holds numbers, or lists of them at any depth."""
    import pyarrow

    lists = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
    while not is_flat and any(is_list(kind) for is_list in lists):
        kind = kind.value_type
    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind))


def _numbers(file: Path, tables: Iterator[Any], names: Sequence[str], form: Form) -> Iterator[Batch]:
    start = 0
    for table in tables:
        columns: list[NDArray[Any]] = [column_array(table.column(name)) for name in names]
        rows = columns[0] if len(columns) == 1 else np.stack(columns, axis=1).reshape(-1, *form.shape)
        yield form.batch(file, start, rows)
        start += len(rows)


def _picture_column(names: Sequence[str], form: Form) -> str | None:
    if form.columns:
        return form.columns[0]
    of_task = form.image(".parquet")
    return of_task if of_task in names else None


def _pictures(file: Path, column: str | None) -> Iterator[Picture]:
    row = 0
    for content, sizes in encoded_pictures(file, column):
        end = 0
        for size in sizes.tolist():
            source = f"{file}[{row}]"
            yield Picture(source, bytes(content[end : end + size]), f"`{printable(source)}`")
            row, end = row + 1, end + size
