"""The same small pictures of three classes in folders and in each kind of shards."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.image_parquet import ImageParquet
from raydistill.tasks.packed_task import PackedTask
from raydistill.tasks.webdataset import WebDataset

RANDOM = np.random.default_rng(0)
CLASSES = ("ant", "bee", "wasp")
OPTIONS: dict[str, Any] = {"image_size": 8, "resize": 9, "workers": 0}
COUNTS = {"train": 24, "val": 6, "test": 9}

Pictures = Mapping[str, list[tuple[int, bytes]]]


def png(label: int = 0) -> bytes:
    """11 x 13 pixels, brightest in the channel of the label."""
    pixels = RANDOM.integers(0, 60, (11, 13, 3), np.uint8)
    pixels[..., label % 3] += 150
    Image.fromarray(pixels).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def some_pictures() -> Pictures:
    """Split → (label, PNG)."""
    return {split: [(row % 3, png(row)) for row in range(count)] for split, count in COUNTS.items()}


def name_of(split: str, row: int, label: int) -> str:
    """A picture's path in folders."""
    return f"{split}/{CLASSES[label]}/{row:04}.png"


def as_folders(folder: Path, pictures: Pictures) -> ImageFolder:
    for split, samples in pictures.items():
        for row, (label, content) in enumerate(samples):
            file = folder / name_of(split, row, label)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return ImageFolder(folder=folder, **OPTIONS)


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as opened:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return file


def shards_of(pictures: Pictures) -> Iterator[tuple[str, list[tuple[str, int, bytes]]]]:
    """Two of each split, `train-00000-of-00002`, with (name, label, PNG) in the order that folders have."""
    for split, samples in pictures.items():
        rows = sorted((label, row, content) for row, (label, content) in enumerate(samples))
        named = [(f"{row:04}.png", label, content) for label, row, content in rows]
        half = (len(named) + 1) // 2
        yield f"{split}-00000-of-00002", named[:half]
        if named[half:]:
            yield f"{split}-00001-of-00002", named[half:]


def as_tars(folder: Path, pictures: Pictures) -> WebDataset:
    """Labels by name."""
    for shard, samples in shards_of(pictures):
        members: list[tuple[str, bytes]] = []
        for name, label, content in samples:
            members += [(name, content), (f"{name[:4]}.cls", CLASSES[label].encode())]
        write_tar(folder / f"{shard}.tar", members)
    return WebDataset(folder=folder, **OPTIONS)


def class_label(column: str = "label", names: Sequence[str] = CLASSES) -> dict[bytes, bytes]:
    """What `datasets` writes into a schema's metadata."""
    features = {"image": {"_type": "Image"}, column: {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write_parquet(file: Path, samples: Iterable[tuple[str | None, Any, bytes | None]], **about: Any) -> Path:
    """Rows (path, label, bytes) in groups of 3; `metadata` of the schema, `type` of the labels."""
    paths, labels, contents = zip(*samples, strict=True)
    image = pa.array(
        [{"bytes": content, "path": path} for content, path in zip(contents, paths, strict=True)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": image, "label": pa.array(labels, about.get("type", pa.int64()))})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata(about.get("metadata", class_label())), file, row_group_size=3
    )
    return file


def as_parquet(folder: Path, pictures: Pictures) -> ImageParquet:
    for shard, samples in shards_of(pictures):
        write_parquet(folder / "data" / f"{shard}.parquet", samples)
    return ImageParquet(folder=folder, **OPTIONS)


FORMATS: dict[str, Callable[[Path, Pictures], PackedTask]] = {"tars": as_tars, "parquet": as_parquet}
