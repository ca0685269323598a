"""The pixels of a split's shards in one memory-mapped file, made on first use.

Parquet is read by row groups: one random sample costs the decompression of thousands. So the pixels are laid out once
as a plain .npy file, and from then on a batch is a gather from the page cache, as fast as from memory; processes on one
machine share its pages. Encoded pictures are decoded then too, once instead of in every epoch. The price is disk: one
byte per value, 1 GB per million pictures of 32 x 32. (Random crops of big pictures are the work of `image_folder`.)

A file's name holds the digest of its shards and of the options that change pixels, it is written beside and renamed,
and who comes second finds it: two processes that start together both write the same. Old ones below the storage root
are found by `distill clean`; nothing else deletes any.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from raydistill.tasks.digests import Stamp, digest_text, stamp
from raydistill.tasks.pictures import (
    READER,
    PictureError,
    Pixels,
    Shape,
    exact_picture,
    read_picture,
    scaled_picture,
)
from raydistill.tasks.shards import (
    ROWS_AT_ONCE,
    check_shard,
    digest_shards,
    opened_shard,
    read_json,
    write_json,
)

logger = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]


@dataclass(frozen=True)
class PixelSource:
    """Shards of one split, and how their pictures become arrays of one shape (channels, height, width)."""

    folder: Path
    files: tuple[Path, ...]
    shape: Shape
    scales: bool
    """Scale encoded pictures to `shape`; otherwise another size is an error."""

    def digest(self) -> str:
        """Names the pixels: equal for equal shards, whatever folder they lie in, read by the same reader."""
        reader = f" {READER}" if is_encoded(self.files[0]) else ""
        return digest_text(f"{digest_shards(self.folder, self.files)} {self.shape} {self.scales}{reader}")


@dataclass(frozen=True)
class CachedPixels:
    """pixels (M, C, H, W), memory-mapped; `unreadable` has the error of every row whose picture is none, `turned` says
    how many pictures were turned from what."""

    pixels: Pixels
    unreadable: Mapping[int, str]
    turned: Mapping[str, int]


@dataclass
class _Noted:
    """What is noted about rows while their pixels are read."""

    unreadable: dict[int, str] = field(default_factory=dict)
    turned: Counter[str] = field(default_factory=Counter)

    def add(self, seen: _Noted, start: int) -> None:
        """What was noted about the rows from `start` on."""
        self.unreadable |= {start + place: reason for place, reason in seen.unreadable.items()}
        self.turned += seen.turned


def cached_pixels(source: PixelSource, cache: Path, *, on_error: OnError, threads: int) -> CachedPixels:
    """All pixels of the shards, from `cache`, where they are laid out if they are not there yet.

    `ValueError` names the shard that is damaged, and with `fail` the first picture that cannot be decoded.
    """
    place = cache / f"{source.files[0].name.split('-')[0]}-{source.digest()[:16]}"
    pixel_file, list_file = place.with_suffix(".npy"), place.with_suffix(".json")
    if not (pixel_file.is_file() and list_file.is_file()):
        _lay_out(source, pixel_file, list_file, on_error, threads)
    noted = read_json(list_file)
    unreadable = {int(row): reason for row, reason in noted.get("unreadable", {}).items()}
    if unreadable and on_error == "fail":
        raise unreadable_picture(next(iter(unreadable.values())))
    return CachedPixels(_map(pixel_file), unreadable, noted.get("turned", {}))


def unreadable_picture(reason: str) -> PictureError:
    """The error for a picture that cannot be decoded."""
    return PictureError(f"{reason}; repair it, or leave such samples out with `on_error: skip`")


@dataclass(frozen=True)
class Glance:
    """Result of a look at `count` pictures of a split: the rows that cannot be read and why, and how many were
    converted from what."""

    count: int
    unreadable: Mapping[int, str]
    turned: Mapping[str, int]
    are_equal: bool


def glance_at(source: PixelSource, cache: Path, *, threads: int, most: int) -> Glance:
    """A look at encoded pictures through `cache`, laid out now if there are at most `most` of them.

    If there are more, or if the pictures are arrays, it looks at `most` of them, from the beginnings of all shards.
    """
    count = sum(_count_rows(file) for file in source.files)
    if not is_encoded(source.files[0]) or count > most:
        return _beginnings(source, threads, max(most // len(source.files), 1))
    cached = cached_pixels(source, cache, on_error="skip", threads=threads)
    return Glance(count, cached.unreadable, cached.turned, _are_equal(cached.pixels))


def _beginnings(source: PixelSource, threads: int, rows: int) -> Glance:
    parts: list[Pixels] = []
    noted, start = _Noted(), 0
    with ThreadPoolExecutor(max(threads, 1)) as executor:
        for file in source.files:
            with opened_shard(file) as shard:
                for pixels, seen in islice(_rows_of(source, file, shard, executor, rows), 1):
                    parts.append(pixels)
                    noted.add(seen, start)
                start += int(shard.metadata.num_rows)
    pixels = np.concatenate(parts)
    return Glance(len(pixels), noted.unreadable, noted.turned, _are_equal(pixels))


def _are_equal(pixels: Pixels) -> bool:
    return len(pixels) > 1 and bool((pixels == pixels[:1]).all())


def _map(file: Path) -> Pixels:
    try:
        # Copy-on-write: torch wants memory that it could write to, and nobody does.
        mapped: Pixels = np.load(file, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"`{file}` is damaged: {error}; delete it, it is made again") from error
    return mapped


def _lay_out(source: PixelSource, pixel_file: Path, list_file: Path, on_error: OnError, threads: int) -> None:
    count = sum(_count_rows(file) for file in source.files)
    if not count:
        raise ValueError(f"shard `{source.files[0]}` and those beside it have no rows")
    logger.info("reading %d pictures from %d shards into `%s`, once", count, len(source.files), pixel_file)
    noted = _Noted()
    with replaced(pixel_file) as temporary, temporary.open("wb") as stream:
        _write_header(stream, (count, *source.shape))
        row = 0
        for pixels, seen in _batches(source, threads):
            if seen.unreadable and on_error == "fail":
                raise unreadable_picture(next(iter(seen.unreadable.values())))
            noted.add(seen, row)
            stream.write(pixels.data)
            row += len(pixels)
        stream.flush()
        os.fsync(stream.fileno())
        # First the list: the pixels' own name says that both are there.
        with replaced(list_file) as beside:
            write_json(beside, {"unreadable": noted.unreadable, "turned": noted.turned})


def _count_rows(file: Path) -> int:
    with opened_shard(file) as shard:
        return int(shard.metadata.num_rows)


def _write_header(stream: IO[bytes], shape: Shape) -> None:
    # Not through `open_memmap`: a disk that runs full is then an error, not a killed process.
    description: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name `file` on success."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(file)
    except OSError as error:
        raise ValueError(
            f"`{file}` cannot be laid out: {error.strerror or error}; name another folder with `cache`"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _batches(source: PixelSource, threads: int) -> Iterator[tuple[Pixels, _Noted]]:
    """Pixels (B, C, H, W) of consecutive rows, zero where they cannot be read, and what was noted about them."""
    with ThreadPoolExecutor(max(threads, 1)) as executor:
        for file in source.files:
            check_shard(source.folder, file)
            with opened_shard(file) as shard:
                yield from _rows_of(source, file, shard, executor, ROWS_AT_ONCE)


def _rows_of(
    source: PixelSource, file: Path, shard: Any, executor: Executor, size: int
) -> Iterator[tuple[Pixels, _Noted]]:
    """The rows of one shard in batches of at most `size`."""
    if picture_column(file, shard) == "pixels":
        yield from _read_arrays(source, file, shard, size)
    else:
        yield from _decode_pictures(source, file, shard, executor, size)


def picture_column(file: Path, shard: Any) -> str:
    """`pixels` or `image`, whichever the shard has."""
    names = shard.schema_arrow.names
    for column in ("pixels", "image"):
        if column in names:
            return column
    raise ValueError(f"shard `{file}` has neither `pixels` nor `image`; it has {', '.join(names)}")


def is_encoded(file: Path) -> bool:
    """Whether a shard's pictures are encoded ones, which have to be decoded."""
    return _is_encoded(file, stamp(file))


@lru_cache(maxsize=64)
def _is_encoded(file: Path, changed: Stamp) -> bool:
    with opened_shard(file) as shard:
        return picture_column(file, shard) == "image"


def picture_shape(file: Path, channels: int | None, image_size: int | None) -> Shape:
    """(channels, height, width) of the pictures: from the metadata, or from the first encoded one and the options."""
    return _picture_shape(file, channels, image_size, stamp(file))


@lru_cache(maxsize=16)
def _picture_shape(file: Path, channels: int | None, image_size: int | None, changed: Stamp) -> Shape:
    with opened_shard(file) as shard:
        column = picture_column(file, shard)
        if column == "pixels":
            if image_size is not None or channels is not None:
                raise ValueError(
                    f"`image_size` and `channels` are for encoded pictures; `{file}` has `pixels`"
                )
            return declared_shape(file, shard)
        if not shard.metadata.num_rows:
            raise ValueError(f"shard `{file}` has no rows")
        first = next(shard.iter_batches(1, columns=["image"]))
    return _first_shape(file, first, channels, image_size)


def declared_shape(file: Path, shard: Any) -> Shape:
    """The entry `shape` of the schema's metadata."""
    text = (shard.schema_arrow.metadata or {}).get(b"shape", b"null")
    try:
        shape = json.loads(text)
    except (ValueError, RecursionError):
        shape = None
    if isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape):
        return tuple(shape)
    raise ValueError(
        f"shard `{file}` does not say the shape of its `pixels`: its schema's metadata should have `shape`, "
        f"such as [1, 32, 32], and has {text.decode(errors='replace')}"
    )


def _first_shape(file: Path, first: Any, channels: int | None, image_size: int | None) -> Shape:
    name = f"the first picture of `{file}`"
    try:
        image = read_picture(encoded(first.column("image"))[0], channels, name=name).image
    except PictureError as error:
        if image_size is not None and channels is not None:
            return channels, image_size, image_size
        raise PictureError(
            f"{error.message}; say the shape of all with `channels` and `image_size`"
        ) from error
    width, height = (image_size, image_size) if image_size is not None else image.size
    return len(image.getbands()), height, width


def encoded(column: Any) -> list[bytes]:
    """A column of encoded pictures, as bytes or as the struct {bytes, path} of the library `datasets`."""
    cells = column.to_pylist()
    return [(cell.get("bytes") if isinstance(cell, dict) else cell) or b"" for cell in cells]


def _read_arrays(source: PixelSource, file: Path, shard: Any, size: int) -> Iterator[tuple[Pixels, _Noted]]:
    shape = declared_shape(file, shard)
    if shape != source.shape:
        raise ValueError(f"pictures of `{file}` are {shape}, those of `{source.files[0]}` {source.shape}")
    for column, names in _named_batches(file, shard, "pixels", size):
        if column.null_count:
            empty = column.is_null().to_pylist().index(True)
            raise ValueError(f"{names[empty]} has no `pixels`")
        yield _bytes_of(file, column, int(np.prod(shape))).reshape(len(column), *shape), _Noted()


def pixel_rows(file: Path, shape: Shape, rows: int) -> Iterator[Pixels]:
    """The column `pixels` of a shard, (B, channels, height, width), `rows` at most at once. `ValueError` where they are
    of another `shape`, or damaged."""
    with opened_shard(file) as shard:
        if (declared := declared_shape(file, shard)) != shape:
            raise ValueError(f"pixels of `{file}` are {declared}; the model takes {shape}")
        for pixels, _ in _read_arrays(PixelSource(file.parent, (file,), shape, False), file, shard, rows):
            yield pixels


def _named_batches(file: Path, shard: Any, column: str, size: int) -> Iterator[tuple[Any, list[str]]]:
    """A column piece by piece, with what to call each of its samples."""
    ids, row = ["id"] if "id" in shard.schema_arrow.names else [], 0
    for batch in shard.iter_batches(size, columns=[column, *ids]):
        numbers = batch.column("id").to_pylist() if ids else range(row, row + len(batch))
        kind = "sample" if ids else "row"
        yield batch.column(column), [f"{kind} {number} of `{file}`" for number in numbers]
        row += len(batch)


def _bytes_of(file: Path, column: Any, size: int) -> Pixels:
    """A column without empty cells as (N * size,) uint8."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_fixed_size_binary(column.type) and column.type.byte_width == size:
        start = column.offset * size
        return np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * size]
    if pyarrow.types.is_nested(column.type) and column.type.value_type == pyarrow.uint8():
        lengths = pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
        if (lengths == size).all():
            values: Pixels = column.flatten().to_numpy(zero_copy_only=False)
            return values
    raise ValueError(
        f"`pixels` of `{file}` are {column.type}; {size} bytes or uint8 per picture are expected"
    )


def _decode_pictures(
    source: PixelSource, file: Path, shard: Any, executor: Executor, size: int
) -> Iterator[tuple[Pixels, _Noted]]:
    for column, names in _named_batches(file, shard, "image", size):
        pixels, noted = np.zeros((len(names), *source.shape), dtype=np.uint8), _Noted()
        decode = partial(_decode, shape=source.shape, scales=source.scales)
        for place, decoded in enumerate(executor.map(decode, encoded(column), names)):
            if isinstance(decoded, PictureError):
                noted.unreadable[place] = decoded.message
            else:
                pixels[place], turned = decoded
                noted.turned.update(turned)
        yield pixels, noted


def _decode(
    content: bytes, name: str, *, shape: Shape, scales: bool
) -> tuple[Pixels, tuple[str, ...]] | PictureError:
    try:
        return (scaled_picture if scales else exact_picture)(content, shape, name=name)
    except PictureError as error:
        return error
