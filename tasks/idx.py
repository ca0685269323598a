"""The IDX format of MNIST and its successors (yann.lecun.com/exdb/mnist): big-endian sizes, then unsigned bytes."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.tasks.task import Arrays

if TYPE_CHECKING:  # a plan looks for files; only a stage reads them
    import numpy as np
    from numpy.typing import NDArray

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
UNSIGNED_BYTE = 0x08


def find_idx_files(folders: Iterable[Path]) -> dict[str, Path] | None:
    """The four files, plain or `.gz`, from the first folder that has them all; None when no folder does."""
    for folder in folders:
        found = {name: path for name in IDX_FILES if (path := _plain_or_packed(folder / name)) is not None}
        if len(found) == len(IDX_FILES):
            return found
    return None


def read_idx_splits(files: dict[str, Path]) -> dict[str, Arrays]:
    """Images as (N, 1, H, W) uint8; ids count through the training samples, then through the test samples."""
    import numpy as np

    train_images, train_labels, test_images, test_labels = (read_idx(files[name]) for name in IDX_FILES)
    ids = np.arange(len(train_labels) + len(test_labels))
    boundary = len(train_labels)
    return {
        "train": Arrays(train_images[:, None], train_labels.astype(np.int64), ids[:boundary]),
        "test": Arrays(test_images[:, None], test_labels.astype(np.int64), ids[boundary:]),
    }


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in one file; `ValueError` names a file that is cut short or of another kind."""
    import numpy as np

    content = _read_unpacked(path)
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise ValueError(f"`{path}` is not an IDX file of unsigned bytes")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"`{path}` is cut short: its header is not complete")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    if values.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"`{path}` is damaged: its header promises {shape}, it holds {values.size} bytes")
    return values.reshape(shape)


def _plain_or_packed(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None


def _read_unpacked(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as stream:
            return stream.read()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"`{path}` is damaged: {error}") from error
