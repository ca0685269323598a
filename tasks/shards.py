"""Samples in Parquet shards: `train-00000.parquet`, `test-*.parquet` and perhaps `validation-*.parquet` in one folder.

A shard has the columns `label` (-1 or empty where a training sample has none) and `id` (integers) and either
`pixels` (uint8 arrays, as fixed-size binary or lists, whose shape (channels, height, width) is the entry `shape` of the
schema's metadata) or `image` (encoded PNG or JPEG). Beside the shards lie `classes.json`, a list with one name per
label, and, where `write_shard_manifest` made it, `manifest.json` with the SHA-256 of every shard. Shards as the library
`datasets` writes them need neither `id` nor `classes.json`: a sample's id is then its row's number in its split, and
the names are in the schema's metadata.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.array_files import array_names, open_array, open_labels
from raydistill.tasks.digests import Stamp, digest_below, digest_file, digest_text, stamp
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.task import Arrays

CLASSES, MANIFEST = "classes.json", "manifest.json"
ROWS_PER_SHARD, ROWS_AT_ONCE = 16_384, 4_096


def shard_files(folder: Path, split: str) -> list[Path]:
    """The shards of one split, in the order of their names."""
    return sorted(folder.glob(f"{split}-*.parquet"))


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Names from `classes.json`, or else from the first training shard; None where neither has them.

    `ValueError` when they are not a list of different names.
    """
    if (folder / CLASSES).is_file():
        return _class_names(folder / CLASSES, stamp(folder / CLASSES))
    shards = shard_files(folder, "train")
    return _schema_names(shards[0], stamp(shards[0])) if shards else None


@lru_cache(maxsize=16)
def _schema_names(shard: Path, changed: Stamp) -> tuple[str, ...] | None:
    """What `datasets` writes about the column `label` of a kind that has names."""
    with opened_shard(shard) as opened:
        text = (opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(text)["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return _different(shard, names)


@lru_cache(maxsize=16)
def _class_names(file: Path, changed: Stamp) -> tuple[str, ...]:
    return _different(file, read_json(file))


def _different(file: Path, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`{file}` should be a JSON list with one name per label")
    if len(set(names)) < len(names):
        raise ValueError(f"`{file}` names a class twice")
    return tuple(names)


def digest_shards(folder: Path, files: Sequence[Path]) -> str:
    """One digest for what the shards hold. `ValueError` when the manifest says something else."""
    digests = digest_below(folder, [file.name for file in files])
    for file in files:
        check_shard(folder, file)
    return digest_text("".join(f"{file.name} {digests[file.name]}\n" for file in files))


def check_shard(folder: Path, file: Path) -> None:
    """`ValueError` when the file is not the one that the manifest describes."""
    known = _manifest_shards(folder).get(file.name)
    if known is None:
        return
    if known["bytes"] != (size := file.stat().st_size):
        raise ValueError(
            f"shard `{file}` has {size} bytes, `{MANIFEST}` says {known['bytes']}: "
            f"bring the shard it describes, or delete `{MANIFEST}` when the change is meant"
        )
    if known["sha256"] != digest_file(file):
        raise ValueError(
            f"shard `{file}` is damaged: its content is not what `{MANIFEST}` says; bring it again, "
            f"or delete `{MANIFEST}` when the change is meant"
        )


def _manifest_shards(folder: Path) -> Mapping[str, Any]:
    file = folder / MANIFEST
    return _manifest(file, stamp(file)) if file.is_file() else {}


@lru_cache(maxsize=16)
def _manifest(file: Path, changed: Stamp) -> Mapping[str, Any]:
    content = read_json(file)
    shards = content.get("shards") if isinstance(content, dict) else None
    if not isinstance(shards, dict):
        raise ValueError(f"`{file}` has no `shards`; delete it, or write it again")
    return shards


def read_json(file: Path) -> Any:
    """What a JSON file holds. `ValueError` names the file when it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{file}` is damaged: {error}") from error


def read_samples(files: Sequence[Path], first_id: int | None = None) -> Arrays:
    """Labels and ids of all shards; the inputs are row numbers (N,), counted through the shards.

    Ids are those of the column `id`, or count on from `first_id`.
    """
    labels = np.concatenate([_integers(file, "label", open_labels) for file in files])
    rows = np.arange(len(labels))
    if first_id is not None:
        return Arrays(rows, labels, rows + first_id)
    return Arrays(rows, labels, np.concatenate([_integers(file, "id") for file in files]))


@lru_cache(maxsize=4096)
def count_unlabelled(file: Path, changed: Stamp) -> int:
    """How many rows of a shard have no label."""
    return int((_integers(file, "label", open_labels) == UNLABELLED).sum())


def have_ids(files: Iterable[Path]) -> bool:
    """Whether one of the shards has the column `id`: then all should."""
    return any("id" in array_names(file) for file in files)


def _integers(
    file: Path, name: str, read: Callable[[Path, str], NDArray[Any]] = open_array
) -> NDArray[np.int64]:
    values = read(file, name)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"`{name}` of `{file}` should be one integer per row, not {values.dtype}")
    return values.astype(np.int64)


@contextmanager
def opened_shard(file: Path) -> Iterator[Any]:
    """A shard as a memory-mapped `pyarrow.parquet.ParquetFile`; what goes wrong in it becomes a `ValueError`."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file, memory_map=True) as source:
            yield source
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"shard `{file}` is damaged or cannot be read: {reason}") from error


def write_shards(folder: Path, split: str, batches: Iterable[Arrays]) -> None:
    """Write batches of uint8 inputs (N, C, H, W) as shards of `ROWS_PER_SHARD` rows."""
    import pyarrow.parquet

    for number, batch in enumerate(_regrouped(batches, ROWS_PER_SHARD)):
        table = _table(batch)
        pyarrow.parquet.write_table(
            table, folder / f"{split}-{number:05}.parquet", row_group_size=ROWS_AT_ONCE, compression="zstd"
        )


def write_shard_manifest(folder: Path, **about: Any) -> None:
    """Write size and SHA-256 of every shard into `manifest.json`, after what else there is to say about them."""
    shards = {
        file.name: {"bytes": file.stat().st_size, "sha256": digest_file(file)}
        for file in sorted(folder.glob("*-*.parquet"))
    }
    write_json(folder / MANIFEST, {**about, "shards": shards})


def write_json(file: Path, value: Any) -> None:
    """Write indented JSON with every character as it is."""
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _table(batch: Arrays) -> Any:
    import pyarrow

    shape = batch.inputs.shape[1:]
    width = int(np.prod(shape))
    pixels = np.ascontiguousarray(batch.inputs, dtype=np.uint8)
    column = pyarrow.FixedSizeBinaryArray.from_buffers(
        pyarrow.binary(width), len(pixels), [None, pyarrow.py_buffer(pixels)]
    )
    table = pyarrow.table({"pixels": column, "label": batch.labels, "id": batch.ids})
    return table.replace_schema_metadata({"shape": json.dumps(shape, allow_nan=False)})


def _regrouped(batches: Iterable[Arrays], rows: int) -> Iterator[Arrays]:
    """The same samples in batches of exactly `rows`, the last one smaller."""
    waiting: list[Arrays] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(part.ids) for part in waiting) < rows:
            continue
        whole = _joined(waiting)
        full = len(whole.ids) - len(whole.ids) % rows
        for start in range(0, full, rows):
            yield _piece(whole, slice(start, start + rows))
        waiting = [_piece(whole, slice(full, None))]
    rest = _joined(waiting) if waiting else None
    if rest is not None and len(rest.ids):
        yield rest


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return Arrays(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.ids for part in parts]),
    )


def _piece(whole: Arrays, place: slice) -> Arrays:
    return Arrays(whole.inputs[place], whole.labels[place], whole.ids[place])
