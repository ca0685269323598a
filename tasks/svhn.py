"""Street View House Numbers, cropped digits (Netzer et al. 2011): two MATLAB files as torchvision stores them."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from raydistill.tasks.published import PublishedTask
from raydistill.tasks.task import Arrays

SVHN_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


class Svhn(PublishedTask):
    """House numbers, 3 x 32 x 32: 73,257 training and 26,032 test digits."""

    name: str = "svhn"

    torchvision_name: ClassVar[str] = "SVHN"
    torchvision_splits: ClassVar[tuple[dict[str, str], ...]] = ({"split": "train"}, {"split": "test"})
    wanted_files: ClassVar[str] = "`train_32x32.mat` and `test_32x32.mat`"
    published_sizes: ClassVar[tuple[int, int]] = (73_257, 26_032)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(str(digit) for digit in range(10))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, 32, 32)

    def locate(self) -> dict[str, Path] | None:
        files = {name: self.roots()[0] / name for name in SVHN_FILES.values()}
        return files if all(path.is_file() for path in files.values()) else None

    def parse(self, files: dict[str, Path]) -> dict[str, Arrays]:
        train = _read_mat(files[SVHN_FILES["train"]], first_id=0)
        test = _read_mat(files[SVHN_FILES["test"]], first_id=len(train.labels))
        return {"train": train, "test": test}


def _read_mat(path: Path, *, first_id: int) -> Arrays:
    """`X` is (32, 32, 3, N); `y` is (N, 1) with 10 for the digit 0."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"]
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise ValueError(f"`{path}` is not a readable MATLAB file with `X` and `y`: {error}") from error
    return Arrays(
        inputs=np.ascontiguousarray(images.transpose(3, 2, 0, 1)),
        labels=np.where(labels.ravel() == 10, 0, labels.ravel()).astype(np.int64),
        ids=np.arange(first_id, first_id + labels.size),
    )
