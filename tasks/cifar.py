"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the Python or the binary version of the published archives."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.array_pickle import load_array_pickle
from raydistill.tasks.published import PublishedTask
from raydistill.tasks.task import Arrays

BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
SHAPE = (3, 32, 32)


class Cifar10(PublishedTask):
    """Ten kinds of objects, 3 x 32 x 32: 50,000 training and 10,000 test pictures."""

    name: str = "cifar10"

    torchvision_name: ClassVar[str] = "CIFAR10"
    wanted_files: ClassVar[str] = (
        "`cifar-10-batches-py/` with `data_batch_1` to `data_batch_5` and `test_batch` "
        "(or the binary version, `cifar-10-batches-bin/`)"
    )
    published_sizes: ClassVar[tuple[int, int]] = (50_000, 10_000)

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    @property
    def input_shape(self) -> tuple[int, ...]:
        return SHAPE

    def locate(self) -> dict[str, Path] | None:
        root = self.roots()[0]
        names = (*BATCHES, "test_batch")
        return _first_complete(root, "cifar-10-batches-py", names) or _first_complete(
            root, "cifar-10-batches-bin", [f"{name}.bin" for name in names]
        )

    def parse(self, files: dict[str, Path]) -> dict[str, Arrays]:
        parts = {Path(name).stem: _read_batch(path, "labels", label_bytes=1) for name, path in files.items()}
        images = np.concatenate([parts[name][0] for name in BATCHES])
        labels = np.concatenate([parts[name][1] for name in BATCHES])
        return _with_ids((images, labels), parts["test_batch"])


class Cifar100(PublishedTask):
    """A hundred kinds of objects, 3 x 32 x 32: 50,000 training and 10,000 test pictures, fine labels."""

    name: str = "cifar100"

    torchvision_name: ClassVar[str] = "CIFAR100"
    wanted_files: ClassVar[str] = (
        "`cifar-100-python/` with `train` and `test` (or the binary version, `cifar-100-binary/`)"
    )
    published_sizes: ClassVar[tuple[int, int]] = (50_000, 10_000)

    @property
    def class_names(self) -> tuple[str, ...]:
        return CIFAR100_NAMES

    @property
    def input_shape(self) -> tuple[int, ...]:
        return SHAPE

    def locate(self) -> dict[str, Path] | None:
        root = self.roots()[0]
        return _first_complete(root, "cifar-100-python", ("train", "test")) or _first_complete(
            root, "cifar-100-binary", ("train.bin", "test.bin")
        )

    def parse(self, files: dict[str, Path]) -> dict[str, Arrays]:
        # A binary record holds the coarse label, then the fine one.
        parts = {
            Path(name).stem: _read_batch(path, "fine_labels", label_bytes=2) for name, path in files.items()
        }
        return _with_ids(parts["train"], parts["test"])


def _first_complete(root: Path, subfolder: str, names: Iterable[str]) -> dict[str, Path] | None:
    for folder in (root / subfolder, root):
        files = {name: folder / name for name in names}
        if all(path.is_file() for path in files.values()):
            return files
    return None


def _read_batch(
    path: Path, labels_key: str, *, label_bytes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 32, 32) and labels (N,) of one file."""
    if path.suffix == ".bin":
        return _read_binary_batch(path, label_bytes)
    content = load_array_pickle(path)
    images, labels = _entries(path, content, labels_key)
    if images.shape != (len(labels), int(np.prod(SHAPE))) or images.dtype != np.uint8:
        raise ValueError(f"`{path}` is damaged: {len(labels)} labels for data {images.dtype} {images.shape}")
    return images.reshape(-1, *SHAPE), labels


def _entries(path: Path, content: Any, labels_key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not isinstance(content, dict) or not {"data", labels_key} <= content.keys():
        raise ValueError(f"`{path}` is not a CIFAR batch: it has no `data` and `{labels_key}`")
    return np.asarray(content["data"]), np.asarray(content[labels_key], dtype=np.int64)


def _read_binary_batch(path: Path, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    values = np.fromfile(path, dtype=np.uint8)
    width = label_bytes + int(np.prod(SHAPE))
    if values.size % width:
        raise ValueError(f"`{path}` is cut short: {values.size} bytes are no multiple of {width}")
    records = values.reshape(-1, width)
    return records[:, label_bytes:].reshape(-1, *SHAPE), records[:, label_bytes - 1].astype(np.int64)


def _with_ids(
    train: tuple[NDArray[np.uint8], NDArray[np.int64]], test: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> dict[str, Arrays]:
    boundary = len(train[1])
    ids = np.arange(boundary + len(test[1]))
    return {"train": Arrays(*train, ids[:boundary]), "test": Arrays(*test, ids[boundary:])}


CIFAR100_NAMES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur",
    "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard",
    "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
    "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
