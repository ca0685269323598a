"""What the data shows before anything is trained on it; and that data in order says nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.npy import Npy
from raydistill.tasks.survey import Finding, count_findings, survey_labels, survey_task
from raydistill.tasks.task import Task
from raydistill.tasks.tensors import Tensors

SPLITS = np.array(["train"] * 60 + ["val"] * 15 + ["test"] * 15)


def findings(folder: Path, **changes: Any) -> tuple[Finding, ...]:
    """Of 90 samples in three classes, five of each in validation and test."""
    arrays = {
        "inputs": np.random.default_rng(0).normal(size=(90, 1, 4, 4)).astype("float32"),
        "labels": np.arange(90) % 3,
        "split": SPLITS,
    }
    np.savez(folder / "t.npz", **{**arrays, **changes})
    return survey_task(Tensors(file=folder / "t.npz")).findings


def inputs_with(**rows: Any) -> np.ndarray:
    inputs = np.random.default_rng(0).normal(size=(90, 1, 4, 4)).astype("float32")
    for row, value in rows.items():
        inputs[int(row[1:])] = value
    return inputs


def test_data_in_order_says_nothing(tmp_path: Path) -> None:
    assert findings(tmp_path) == ()
    assert survey_task(Mnist()).findings == ()


def test_a_survey_counts_what_training_will_see() -> None:
    counts = survey_task(Mnist()).counts
    assert {split: sum(classes) for split, classes in counts.items()} == {
        "train": 3600,
        "validation": 400,
        "test": 1000,
    }


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (inputs_with(r7=np.nan), "sample 7 of `train` is not finite"),
        (inputs_with(r80=np.inf), "sample 80 of `test` is not finite"),
        (np.ones((90, 1, 4, 4), "float32"), "all 60 training inputs are equal"),
    ],
)
def test_inputs_that_nothing_can_be_learned_from_are_errors(
    tmp_path: Path, inputs: np.ndarray, words: str
) -> None:
    first = findings(tmp_path, inputs=inputs)[0]
    assert first.level == "error"
    assert words in first.text


def test_data_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, labels=np.arange(89) % 3)
    assert finding.level == "error"
    assert "90 inputs, 89 labels" in finding.text
    (tmp_path / "t.npz").unlink()
    (finding,) = survey_task(Tensors(file=tmp_path / "t.npz")).findings
    assert "finds no file" in finding.text


def test_test_samples_that_were_trained_on_are_told_with_their_ids(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, inputs=inputs_with(r80=inputs_with()[7], r81=inputs_with()[8]))
    assert finding.level == "warning"
    assert "2 of 15 test samples (13 %) are in the training split too, such as sample 80 as 7" in finding.text


def test_blank_inputs_are_counted(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, inputs=inputs_with(r1=0, r2=0.5))
    assert finding == Finding("warning", "2 of 60 train inputs are blank: one value throughout")


@pytest.mark.parametrize(
    ("train", "test", "level", "words"),
    [
        ((0, 0, 0), (5, 5, 5), "error", "there are no training samples"),
        ((0, 60, 0), (5, 5, 5), "error", "all 60 training samples are of the class `b`"),
        ((0, 30, 30), (0, 5, 5), "warning", "class `a` has no samples and all 2 others have: are the labels"),
        ((30, 0, 30), (5, 5, 5), "warning", "no training samples have 1 class: `b`, though 5 samples to be"),
        ((30, 30, 0), (5, 5, 0), "warning", "no training samples have 1 class: `c`"),
        ((30, 30, 4), (5, 5, 5), "warning", "fewer than 5 training samples have 1 class: `c`"),
        ((30, 30, 30), (5, 5, 0), "warning", "no test samples have 1 class: `c`"),
        ((30, 30, 30), (0, 0, 0), "warning", "there are no test samples"),
        ((97, 30, 6), (5, 5, 5), "warning", "`a` has 72.9 % of the training samples, `c` 4.51 %"),
    ],
)
def test_what_the_counts_show_is_one_line(
    train: tuple[int, ...], test: tuple[int, ...], level: str, words: str
) -> None:
    (finding,) = count_findings({"train": train, "test": test}, "abc")
    assert finding.level == level
    assert finding.text.startswith(words)


def test_very_many_classes_are_counted_and_not_listed() -> None:
    (finding,) = count_findings({"train": [9] * 500 + [1] * 1500}, [f"c{i}" for i in range(2000)])
    assert (
        finding.text
        == "fewer than 5 training samples have 1,500 classes: `c500`, `c501`, `c502` and 1,497 more"
    )


def test_labels_alone_give_the_counts_of_the_whole_survey(tmp_path: Path) -> None:
    findings(tmp_path)
    np.save(tmp_path / "inputs.npy", inputs_with())
    np.save(tmp_path / "labels.npy", np.arange(90) % 3)
    random = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 4)):
        for name in ("ant", "bee"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
                picture.save(tmp_path / "pictures" / split / name / f"{number}.png")
    tasks: list[Task] = [
        Tensors(file=tmp_path / "t.npz"),
        Npy(inputs=tmp_path / "inputs.npy", labels=tmp_path / "labels.npy", split_seed=3),
        ImageFolder(folder=tmp_path / "pictures", image_size=8, resize=8, workers=0),
    ]
    for task in tasks:
        listed = survey_labels(task)
        assert listed is not None
        assert listed.counts == survey_task(task).counts
        assert all(sum(split) for split in listed.counts.values())
    assert survey_labels(Mnist()) is None


def test_labels_alone_show_what_the_counts_show_and_what_cannot_be_read(tmp_path: Path) -> None:
    findings(tmp_path, labels=np.where(np.arange(90) == 3, 0, 1 + np.arange(90) % 2))
    rare = survey_labels(Tensors(file=tmp_path / "t.npz"))
    assert rare is not None
    assert any("fewer than 5 training samples have 1 class: `0`" in found.text for found in rare.findings)
    findings(tmp_path, ids=np.zeros(90, np.int64))
    doubled = survey_labels(Tensors(file=tmp_path / "t.npz"))
    assert doubled is not None
    assert [found.level for found in doubled.findings] == ["error"]
    assert "the id 0 belongs to more than one sample" in doubled.findings[0].text
