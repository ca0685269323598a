"""Predictions as a file, written as they come; it has its name when it is whole."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from raydistill.errors import PlanError
from raydistill.inference.labels import Labelled
from raydistill.runs.files import atomic_write

ROWS_PER_GROUP = 2**16  # each group of rows costs a Parquet file's readers some time
COLUMNS = ("source", "rank", "label", "probability", "error")

Write = Callable[[Labelled], None]


def write_predictions(path: Path, batches: Iterable[Labelled]) -> None:
    """Write predictions to a file whose ending says how: `.csv`, `.parquet`, `.jsonl`.

    The first two have a row per input and rank, or one with its error; JSON lines are an object per input.
    """
    check_output(path)
    with atomic_write(path) as temporary, _FORMATS[path.suffix.lower()](temporary) as write:
        for batch in batches:
            write(batch)


def check_output(path: Path) -> None:
    """`PlanError` when no file can be written there: better now than after the work."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise PlanError(f"`{path}` cannot be written: there is no folder `{folder}`")
    if path.is_dir():
        raise PlanError(f"`{path}` is a folder; name a file in it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PlanError(f"`{path}` cannot be written: `{folder}` does not allow it")
    if path.suffix.lower() not in _FORMATS:
        raise PlanError(f"`{path}`: its ending says no format; write one of {', '.join(_FORMATS)}")


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)

        def write(batch: Labelled) -> None:
            for prediction in batch:
                writer.writerows(
                    (prediction.source, rank, label, f"{probability:.6f}", "")
                    for rank, (label, probability) in zip(count(1), prediction.ranked, strict=False)
                )
                if prediction.error is not None:
                    writer.writerow((prediction.source, "", "", "", prediction.error))

        yield write


@contextmanager
def _json_lines(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as stream:

        def write(batch: Labelled) -> None:
            for prediction in batch:
                ranked = [{"label": name, "probability": value} for name, value in prediction.ranked]
                said: dict[str, Any] = {"predictions": ranked}
                if prediction.error is not None:
                    said = {"error": prediction.error}
                # ASCII: names of files that are no UTF-8 have no other form that is
                stream.write(json.dumps({"source": prediction.source, **said}) + "\n")

        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = (pyarrow.string(), pyarrow.int32(), pyarrow.string(), pyarrow.float32(), pyarrow.string())
    schema = pyarrow.schema(list(zip(COLUMNS, kinds, strict=True)))
    waiting: list[Any] = []
    with ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pyarrow.Table.from_batches(waiting))
                waiting.clear()

        def write(batch: Labelled) -> None:
            waiting.append(pyarrow.RecordBatch.from_pydict(_columns(batch), schema))
            if sum(map(len, waiting)) >= ROWS_PER_GROUP:
                flush()

        yield write
        flush()


def _columns(batch: Labelled) -> dict[str, list[Any]]:
    rows: list[tuple[Any, ...]] = []
    for prediction in batch:
        source = _utf8(prediction.source)
        rows += [
            (source, rank, name, probability, None)
            for rank, (name, probability) in zip(count(1), prediction.ranked, strict=False)
        ]
        if prediction.error is not None:
            rows.append((source, None, None, None, _utf8(prediction.error)))
    columns = zip(*rows, strict=True) if rows else ([] for _ in COLUMNS)
    return dict(zip(COLUMNS, map(list, columns), strict=True))


def _utf8(text: str) -> str:
    """A name of a file in some other encoding with its bytes spelled out."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


_FORMATS: Mapping[str, Callable[[Path], AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".jsonl": _json_lines,
}
