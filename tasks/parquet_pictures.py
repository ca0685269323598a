"""Encoded pictures in Parquet shards, as the library `datasets` writes them: their labels, and their bytes one by one.

Parquet is read by groups of rows, each compressed as a whole: one picture costs the reading of a hundred or a thousand.
So the bytes of a shard's pictures are laid out once, one after the other, in a file beside it; from then on a picture
is one read. (`pixel_cache.py` does the same with pixels of one size.)
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.digests import Stamp, digest_file, digest_text, remembered_of
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.packed_task import Shard, Stretches, numbered_groups
from raydistill.tasks.pixel_cache import replaced
from raydistill.tasks.reduced import LARGE, has_large_jpeg
from raydistill.tasks.shard_names import refuse_pointer
from raydistill.tasks.shards import opened_shard

ROWS_AT_ONCE = 64  # pictures can be large

logger = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def read_shard(file: Path, image: str | None, label: str | None, group: str | None, changed: Stamp) -> Shard:
    """Keys, labels and groups."""
    keys = read_keys(file, image, changed)
    with opened_shard(file) as opened:
        named = _column(file, opened, "label", label, "ClassLabel")
        labels, texts = _labels(file, named, opened.read(columns=[named]).column(0))
        names = _features(opened).get(named, {}).get("names") if texts is None else None
        groups = None
        if group is not None:
            column = opened.read(columns=[_column(file, opened, "group", group)]).column(0)
            groups = numbered_groups(file, [key.decode() for key in keys.tolist()], column.to_pylist())
    if isinstance(names, list) and len(set(map(str, names))) < len(names):
        raise ValueError(f"`{file}` names a class twice")
    return Shard(keys, labels, texts, tuple(map(str, names)) if isinstance(names, list) else None, groups)


@lru_cache(maxsize=4096)
def read_keys(file: Path, image: str | None, changed: Stamp) -> NDArray[np.bytes_]:
    """Of each picture the path in its struct, where each has its own, or else the row."""
    import pyarrow

    refuse_pointer(file)
    with opened_shard(file) as opened:
        picture = _column(file, opened, "image", image, "Image")
        kind = opened.schema_arrow.field(picture).type
        if pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0:
            column = opened.read(columns=[f"{picture}.path"]).column(0).combine_chunks().field("path")
            if not column.null_count and len(column.unique()) == len(column):
                return np.array([path.encode() for path in column.to_pylist()], dtype=np.bytes_)
        return np.array([f"row {row}".encode() for row in range(opened.metadata.num_rows)], dtype=np.bytes_)


def laid_out(file: Path, image: str | None, cache: Path) -> Stretches:
    """The bytes of a shard's pictures in `cache`, laid out if they are not there yet; none of a picture without."""
    place = cache / f"pictures-{digest_text(f'{digest_file(file)} {image}')[:16]}"
    bytes_file, sizes_file = place.with_suffix(".bytes"), place.with_suffix(".npy")
    if not (bytes_file.is_file() and sizes_file.is_file()):
        logger.info("laying out the pictures of `%s` as `%s`, once", file, bytes_file)
        sizes: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        with replaced(bytes_file) as temporary, temporary.open("wb") as stream:
            for data, part in encoded_pictures(file, image):
                stream.write(data)
                sizes.append(part)
            stream.flush()
            os.fsync(stream.fileno())
            # First the sizes: the bytes' own name says that both are there.
            with replaced(sizes_file) as beside, beside.open("wb") as list_stream:
                np.save(list_stream, np.concatenate(sizes), allow_pickle=False)
    try:
        known = np.load(sizes_file, allow_pickle=False)
        if known.sum() != bytes_file.stat().st_size:
            raise ValueError(f"it should have {known.sum()} bytes")
    except (ValueError, EOFError) as error:
        raise ValueError(f"`{bytes_file}` is damaged: {error}; delete it, it is made again") from error
    return Stretches(bytes_file, np.cumsum(known) - known, known)


def has_large_picture(file: Path, image: str | None) -> bool:
    """Whether a picture of a shard may be read at a reduced size. The shard is read once, and that is remembered."""

    def look() -> dict[str, Any]:
        for data, sizes in encoded_pictures(file, image):
            if sizes.max(initial=0) >= LARGE:
                places = zip((np.cumsum(sizes) - sizes).tolist(), sizes.tolist(), strict=True)
                if has_large_jpeg(io.BytesIO(data), places):
                    return {"large": True}
        return {"large": False}

    return bool(remembered_of(file, f"has a JPEG of {LARGE} bytes in {image}", look)["large"])


def encoded_pictures(file: Path, image: str | None) -> Iterator[tuple[memoryview, NDArray[np.int64]]]:
    """Pictures one after the other, and their sizes (B,), a few at a time."""
    import pyarrow
    import pyarrow.compute

    with opened_shard(file) as opened:
        column = _column(file, opened, "image", image, "Image")
        is_struct = pyarrow.types.is_struct(opened.schema_arrow.field(column).type)
        wanted = f"{column}.bytes" if is_struct else column
        for batch in opened.iter_batches(ROWS_AT_ONCE, columns=[wanted]):
            values = batch.column(0)
            if is_struct:
                values = pyarrow.compute.struct_field(values, "bytes")
                if 0 < len(values) == values.null_count:
                    raise ValueError(
                        f"`{file}` has the paths of pictures in column `{column}`, and not their bytes; write them in"
                        " (`embed_table_storage` of Hugging Face's datasets), or take the task `image_manifest`"
                    )
            values = values.cast(pyarrow.large_binary()).fill_null(b"")
            _, offsets_buffer, data = values.buffers()
            offsets = np.frombuffer(offsets_buffer, np.int64)[values.offset : values.offset + len(values) + 1]
            content = memoryview(data or b"")[offsets[0] : offsets[-1]] if len(values) else memoryview(b"")
            yield content, np.diff(offsets)


def _column(file: Path, opened: Any, kind: str, wanted: str | None, feature: str = "") -> str:
    """The column with pictures, labels or groups: by its name, or as the only one with such a feature."""
    import pyarrow

    schema = opened.schema_arrow
    alike = [name for name, about in _features(opened).items() if about.get("_type") == feature]
    name = wanted or (kind if kind in schema.names else alike[0] if len(alike) == 1 else kind)
    if name not in schema.names:
        there = ", ".join(f"`{column}`" for column in schema.names)
        raise ValueError(f"`{file}` has no column `{name}`; name one of {there} in the option `{kind}`")
    if kind == "image":
        found = schema.field(name).type
        if pyarrow.types.is_struct(found) and found.get_field_index("bytes") >= 0:
            found = found.field("bytes").type
        if not (pyarrow.types.is_binary(found) or pyarrow.types.is_large_binary(found)):
            raise ValueError(
                f"column `{name}` of `{file}` holds {schema.field(name).type}, no encoded pictures; name another in the"
                " option `image`"
            )
    return name


def _features(opened: Any) -> Mapping[str, Mapping[str, Any]]:
    """What `datasets` writes about each column; nothing where somebody else wrote the file."""
    try:
        about = json.loads((opened.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return (
        {name: one for name, one in about.items() if isinstance(one, dict)} if isinstance(about, dict) else {}
    )


def _labels(file: Path, name: str, column: Any) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """Labels (N,), and the texts that they count where the column holds texts."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind):
        return column.cast(pyarrow.int64()).fill_null(UNLABELLED).to_numpy(), None
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        texts = sorted(text for text in column.unique().to_pylist() if text is not None)
        position = {text: number for number, text in enumerate(texts)} | {None: UNLABELLED}
        return np.array([position[text] for text in column.to_pylist()], dtype=np.int64), tuple(texts)
    raise ValueError(
        f"column `{name}` of `{file}` holds {kind}, no labels: integers or texts; name another in the option `label`"
    )
