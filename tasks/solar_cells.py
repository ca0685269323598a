"""Solar cells in infrared light, from the package `elpv-dataset` (Buerhop-Lutz et al. 2018; CC BY-NC-SA 4.0)."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Literal

from pydantic import Field

from raydistill.tasks.digests import digest_below, digest_named
from raydistill.tasks.hashing import cut, fold_key
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, Task

PACKAGE = "elpv_dataset"
LABELS = "labels.csv"
NAMES = {
    2: ("functional", "defective"),
    4: ("functional", "probably functional", "probably defective", "defective"),
}
TEST_FRACTION = 0.2
TEST_KEY = fold_key(2624, Purpose.TEST_CUT)  # fixed for good: which cells of each class are test cells


class SolarCells(Task):
    """2,624 grey pictures of cells, 300 x 300 as they come, graded by an expert: functional or defective, sure or not.

    A fifth of each grade is the test split. The pictures come with a package: `pip install elpv-dataset`. The grades
    are unequal (1,508, 295, 106, 715), which `class_weights: balanced` and the metric `balanced_accuracy` are for.
    """

    name: str = "solar_cells"
    image_size: int = Field(default=160, ge=1, le=300)
    """Height and width of an input in pixels; the pictures are scaled to it once, when they are read."""
    grades: Literal[2, 4] = 4
    """4 as they were given, or 2: functional and defective, sure or not."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return NAMES[self.grades]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, self.image_size, self.image_size)

    def missing_files(self) -> str | None:
        if _folder() is not None:
            return None
        return "task `solar_cells` finds no pictures: they come with the package, `pip install elpv-dataset`"

    def content(self) -> str:
        from raydistill.tasks.pictures import READER

        folder = self._found()
        files = (LABELS, *(path for path, _ in _rows(folder)))
        return f"{READER} {digest_named(digest_below(folder, files))}"

    def read(self) -> dict[str, Arrays]:
        """A cell's id is its line in the package's table."""
        import numpy as np

        from raydistill.tasks.pictures import scaled_picture

        folder = self._found()
        rows = _rows(folder)
        grades = np.array([grade for _, grade in rows], dtype=np.int64)
        ids = np.arange(len(rows))
        is_test = np.zeros(len(rows), dtype=bool)
        for grade in range(4):
            members = np.flatnonzero(grades == grade)
            is_test[members] = cut(ids[members], TEST_FRACTION, TEST_KEY)
        inputs = np.stack([scaled_picture(folder / path, self.input_shape)[0] for path, _ in rows])
        cells = Arrays(inputs, grades * self.grades // 4, ids)
        return {"train": cells.take(~is_test), "test": cells.take(is_test)}

    def _found(self) -> Path:
        self.require_files()
        folder = _folder()
        assert folder is not None
        return folder


def _folder() -> Path | None:
    """Where the package lies, which is found without being imported."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0]) / "data"
    return folder if (folder / LABELS).is_file() else None


def _rows(folder: Path) -> list[tuple[str, int]]:
    """Each cell's file below `folder`, and its grade from 0 to 3: the table has a probability of defect, in thirds."""
    with (folder / LABELS).open(newline="", encoding="utf-8") as lines:
        table = csv.reader(lines, delimiter=" ", skipinitialspace=True)
        return [(path, round(3 * float(probability))) for path, probability, _ in table]
