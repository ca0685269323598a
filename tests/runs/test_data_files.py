"""Which files of the data changed, said in words."""

from pathlib import Path

import pytest

from raydistill.runs.data_files import DataFiles, write_listings
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.mnist import Mnist

PARTS = {"train": ("ant/0.png", "ant/1.png", "bee/0.png"), "val": ("ant/0.png", "bee/0.png")}


@pytest.fixture
def task(tmp_path: Path) -> ImageFolder:
    """Files with the names of pictures: nobody looks into them here."""
    for part, names in PARTS.items():
        for name in names:
            file = tmp_path / "data" / part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{part}/{name}")
    return ImageFolder(folder=tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "learned", "test"),
    [
        ({}, None, None),
        ({"train/ant/1.png": "new"}, "1 file of `train` changed (`train/ant/1.png`)", None),
        (
            {
                "train/ant/0.png": "new",
                "train/ant/1.png": "new",
                "train/bee/1.png": "more",
                "train/bee/0.png": None,
            },
            "2 files of `train` changed (`train/ant/0.png`, …), 1 file of `train` is new (`train/bee/1.png`),"
            " 1 file of `train` is gone (`train/bee/0.png`)",
            None,
        ),
        ({"val/bee/0.png": "repaired"}, None, "1 file of `test` changed (`val/bee/0.png`)"),
    ],
)
def test_what_changed_is_counted_and_one_is_named(
    task: ImageFolder, tmp_path: Path, change: dict[str, str | None], learned: str | None, test: str | None
) -> None:
    identity, judged_on = task.identity(), task.test_content()
    write_listings(tmp_path / "runs", task, identity, judged_on)
    for name, text in change.items():
        file = task.folder / name
        file.write_text(text) if text is not None else file.unlink()
    files = DataFiles(tmp_path / "runs", task)
    assert (files.changed_learned(identity), files.changed_test(judged_on)) == (learned, test)
    assert (task.identity() == identity, task.test_content() == judged_on) == (learned is None, test is None)


def test_data_that_is_one_whole_has_no_list(tmp_path: Path) -> None:
    write_listings(tmp_path, Mnist(), Mnist().identity(), Mnist().test_content())
    assert not list(tmp_path.iterdir())
    assert DataFiles(tmp_path, Mnist()).changed_learned(Mnist().identity()) is None
