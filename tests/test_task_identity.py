"""The identity of data: it changes exactly when what is learned from does, that of the test split when that does."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.tensors import Tensors

QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
PARTS, KINDS = ("train", "val", "test"), ("ant", "bee")
NAMES = [f"{part}/{kind}/{number}.png" for part in PARTS for kind in KINDS for number in "01"]
FOLDERS = st.fixed_dictionaries(
    {name: st.sampled_from([b"one", b"two"]) for name in NAMES if name.endswith("0.png")},
    optional={name: st.sampled_from([b"one", b"two"]) for name in NAMES if name.endswith("1.png")},
)
"""Path → content, with a picture in every class."""


def write_folder(folder: Path, files: dict[str, bytes]) -> ImageFolder:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return ImageFolder(folder=folder)


@QUICK
@given(one=FOLDERS, other=FOLDERS)
def test_folders_are_the_same_data_exactly_if_paths_and_bytes_are(
    tmp_path: Path, one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    a, b = write_folder(tmp_path / "a", one), write_folder(tmp_path / "b", other)

    def part(files: dict[str, bytes], *, is_test: bool) -> dict[str, bytes]:
        return {name: content for name, content in files.items() if name.startswith("test/") == is_test}

    assert (a.identity() == b.identity()) == (part(one, is_test=False) == part(other, is_test=False))
    assert (a.test_content() == b.test_content()) == (part(one, is_test=True) == part(other, is_test=True))


@pytest.mark.parametrize(
    "name", ["notes.txt", "train/ant/.hidden.png", "train/ant/._0.png", "extra/ant/0.png"]
)
def test_a_file_that_is_no_sample_does_not_count(tmp_path: Path, name: str) -> None:
    files = dict.fromkeys(NAMES, b"one")
    task = write_folder(tmp_path / "data", files)
    before = task.identity(), task.test_content()
    write_folder(tmp_path / "data", files | {name: b"other"})
    assert (task.identity(), task.test_content()) == before


def test_pictures_that_change_places_are_other_data(tmp_path: Path) -> None:
    files = {name: name.encode() for name in NAMES}
    task = write_folder(tmp_path / "data", files)
    before = task.identity()
    ant, bee = tmp_path / "data/train/ant/0.png", tmp_path / "data/train/bee/0.png"
    ant_bytes, bee_bytes = ant.read_bytes(), bee.read_bytes()
    ant.write_bytes(bee_bytes), bee.write_bytes(ant_bytes)
    assert task.identity() != before


def test_without_a_test_folder_val_is_the_test_split(tmp_path: Path) -> None:
    files = {name: b"one" for name in NAMES if not name.startswith("test/")}
    task = write_folder(tmp_path / "data", files)
    before, judged_on = task.identity(), task.test_content()
    (tmp_path / "data/val/ant/0.png").write_bytes(b"repaired")
    assert task.identity() == before
    assert task.test_content() != judged_on


SPLITS = np.repeat(["train", "validation", "test"], (4, 2, 3))


def arrays(**changes: Any) -> dict[str, Any]:
    inputs = np.arange(27, dtype=np.float32).reshape(9, 3)
    return {"inputs": inputs, "labels": np.arange(9) % 3, "split": SPLITS} | changes


def tensors(folder: Path, **changes: Any) -> Tensors:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "data.npz", **arrays(**changes))
    return Tensors(file=folder / "data.npz")


@QUICK
@given(row=st.integers(0, 8), column=st.sampled_from(["inputs", "labels", "split", "ids"]))
def test_a_row_counts_for_the_split_it_is_in(tmp_path: Path, row: int, column: str) -> None:
    values = arrays(ids=np.arange(9))
    before = tensors(tmp_path, **values)
    learned, judged_on = before.identity(), before.test_content()
    changed = values[column].copy()
    was_test = SPLITS[row] == "test"
    changed[row] = {
        "inputs": -1,
        "labels": (changed[row] == 0) * 1 if column == "labels" else 0,
        "ids": 99,
    }.get(column, "train" if was_test else "test")
    after = tensors(tmp_path, **values | {column: changed})
    moves = column == "split"
    assert (after.identity() != learned) == (moves or not was_test)
    assert (after.test_content() != judged_on) == (moves or was_test)


def test_another_number_of_classes_counts_even_if_only_a_test_row_shows_it(tmp_path: Path) -> None:
    before = tensors(tmp_path).identity()
    labels = arrays()["labels"].copy()
    labels[-1] = 7
    assert tensors(tmp_path, labels=labels).identity() != before


def test_neither_the_format_nor_other_arrays_of_the_file_count(tmp_path: Path) -> None:
    numbers = {"split": np.repeat([0, 1, 2], (4, 2, 3))}
    before = tensors(tmp_path, **numbers)
    learned, judged_on = before.identity(), before.test_content()
    more = tensors(tmp_path, **numbers, notes=np.zeros(5))
    assert (more.identity(), more.test_content()) == (learned, judged_on)
    save_file(arrays(**numbers), tmp_path / "data.safetensors")
    other = Tensors(file=tmp_path / "data.safetensors")
    assert (other.identity(), other.test_content()) == (learned, judged_on)


def test_a_large_files_parts_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydistill.tasks import digests

    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(digests, "WORTH_BYTES", 1)
    task = tensors(tmp_path)
    before = task.identity(), task.test_content()
    monkeypatch.setattr(Tensors, "_digest_rows", lambda self: pytest.fail("read again"))
    assert (task.identity(), task.test_content()) == before
