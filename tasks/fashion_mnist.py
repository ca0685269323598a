"""Fashion-MNIST (arXiv 1708.07747): the four IDX files as torchvision or as Debian lays them out."""

from pathlib import Path
from typing import ClassVar

from raydistill.tasks.idx import find_idx_files, read_idx_splits
from raydistill.tasks.published import PublishedTask
from raydistill.tasks.task import Arrays

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where `apt install dataset-fashion-mnist` puts the files."""


class FashionMnist(PublishedTask):
    """Pictures of clothes, 28 x 28. Without `folder`: Debian's package, if installed."""

    name: str = "fashion_mnist"

    torchvision_name: ClassVar[str] = "FashionMNIST"
    wanted_files: ClassVar[str] = (
        "the four IDX files (`train-images-idx3-ubyte`, ..., plain or .gz; Debian: `apt install dataset-fashion-mnist`)"
    )
    published_sizes: ClassVar[tuple[int, int]] = (60_000, 10_000)

    @property
    def class_names(self) -> tuple[str, ...]:
        return (
            "T-shirt/top", "trouser", "pullover", "dress", "coat",
            "sandal", "shirt", "sneaker", "bag", "ankle boot",
        )  # fmt: skip

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, 28, 28)

    def locate(self) -> dict[str, Path] | None:
        root = self.roots()[0]
        folders = [root, root / "raw", root / "FashionMNIST" / "raw"]
        if self.folder is None:
            folders.insert(0, DEBIAN_FOLDER)
        return find_idx_files(folders)

    def parse(self, files: dict[str, Path]) -> dict[str, Arrays]:
        return read_idx_splits(files)
