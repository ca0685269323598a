"""`solar_cells` over a package that is made up here: the real one is a download of 90 MB."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydistill.tasks.solar_cells import SolarCells

COUNTS = (10, 5, 5, 15)  # of each grade


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `elpv-dataset` lays out its files; each picture is as bright as its line in the table."""
    folder = tmp_path / "elpv_dataset" / "data"
    (folder / "images").mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    words = ["0.0", "0.3333333333333333", "0.6666666666666666", "1.0"]
    grades = [word for word, count in zip(words, COUNTS, strict=True) for _ in range(count)]
    for line, _ in enumerate(grades):
        Image.new("L", (300, 300), line).save(folder / "images" / f"cell{line:04}.png")
    rows = [f"images/cell{line:04}.png  {grade:<20} mono\n" for line, grade in enumerate(grades)]
    (folder / "labels.csv").write_text("".join(rows))
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_fifth_of_each_grade_is_for_the_test_and_every_picture_keeps_its_grade(package: Path) -> None:
    parts = SolarCells(image_size=16).read()
    assert np.bincount(parts["test"].labels).tolist() == [2, 1, 1, 3]
    assert np.bincount(parts["train"].labels).tolist() == [8, 4, 4, 12]
    for part in parts.values():
        assert part.inputs.shape[1:] == (1, 16, 16)
        assert (part.inputs == part.ids[:, None, None, None]).all()
        assert part.labels.tolist() == np.searchsorted(np.cumsum(COUNTS), part.ids, side="right").tolist()


def test_two_grades_are_the_halves_of_four(package: Path) -> None:
    four, two = SolarCells(image_size=4).read(), SolarCells(image_size=4, grades=2).read()
    for split in four:
        assert two[split].ids.tolist() == four[split].ids.tolist()
        assert two[split].labels.tolist() == [grade // 2 for grade in four[split].labels.tolist()]
    assert SolarCells(grades=2).class_names == ("functional", "defective")


def test_another_picture_or_another_grade_is_other_data(package: Path) -> None:
    before = SolarCells().content()
    Image.new("L", (300, 300), 200).save(package / "images" / "cell0003.png")
    changed = SolarCells().content()
    table = package / "labels.csv"
    table.write_text(table.read_text().replace("1.0", "0.0", 1))
    assert len({before, changed, SolarCells().content()}) == 3


def test_without_the_package_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.tasks.solar_cells.PACKAGE", "no_such_package_of_cells")
    with pytest.raises(FileNotFoundError, match="pip install elpv-dataset"):
        SolarCells().load()
