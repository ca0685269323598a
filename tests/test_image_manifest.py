"""`image_manifest` against the same pictures in folders, and what is wrong in a table, line by line."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydistill.tasks import picture_survey
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.image_manifest import ImageManifest
from raydistill.tasks.survey import survey_labels, survey_task
from raydistill.tasks.task import Cut

SIZE = {"image_size": 8, "resize": 8, "workers": 0}
CLASSES = ("cat", "dog")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(256, size=(10, 12, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """birds/train/cat/0.png and so on: of each class twelve to train on, four for validation, four for the test."""
    counts = {"train": 12, "val": 4, "test": 4}
    for number, (part, count) in enumerate(counts.items()):
        for label, name in enumerate(CLASSES):
            for index in range(count):
                picture(
                    tmp_path / "pictures" / part / name / f"{index}.png", 1000 * number + 100 * label + index
                )
    return tmp_path / "pictures"


def listed(folder: Path) -> list[list[str]]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return [[path, path.split("/")[1], path.split("/")[0]] for path in paths]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Sequence[Sequence[str]], header: str = "path,label,split", **how: Any) -> Path:
        file = tmp_path / "labels.csv"
        with file.open("w", newline="", encoding=how.pop("encoding", "utf-8")) as stream:
            writer = csv.writer(stream, **how)
            writer.writerow(header.split(","))
            writer.writerows(rows)
        return file

    return write


def pixels(split: Any) -> dict[int, tuple[int, bytes]]:
    (batch,) = split.batches([torch.arange(len(split))], None)
    labels = split.labels.tolist()
    return {
        identifier: (label, image.numpy().tobytes())
        for identifier, label, image in zip(split.ids.tolist(), labels, batch, strict=True)
    }


@pytest.mark.parametrize(
    "how", [{}, {"delimiter": ";", "encoding": "utf-8-sig"}, {"delimiter": "\t", "quoting": csv.QUOTE_ALL}]
)
def test_a_table_of_the_pictures_in_folders_is_the_same_data(
    folder: Path, table: Callable[..., Path], how: dict[str, Any]
) -> None:
    file = table(listed(folder), **how)
    ours = ImageManifest(file=file, folder=folder, **SIZE).load()
    theirs = ImageFolder(folder=folder, **SIZE).load()
    assert ours.class_names == theirs.class_names == CLASSES
    for split in ("train", "validation", "test"):
        assert pixels(getattr(ours, split)) == pixels(getattr(theirs, split))


def test_what_the_table_does_not_divide_is_cut_and_a_group_stays_together(
    folder: Path, table: Callable[..., Path]
) -> None:
    rows = [[path, label, path.rpartition("/")[2]] for path, label, _ in listed(folder)]
    file = table(rows, "path,label,group")
    task = ImageManifest(
        file=file, folder=folder, cut=Cut(by="group", stratified=True), validation_fraction=0.2, **SIZE
    )
    data = task.load()
    sides = []
    for split in (data.train, data.validation, data.test):
        assert set(split.labels.tolist()) == {0, 1}
        sides.append({split.task.store().name(place).rpartition("/")[2] for place in split.places.tolist()})
    assert sum(map(len, sides)) == len(set.union(*sides)) == 12  # each number is a group of both classes


def test_pictures_of_several_folders_and_without_a_label(
    folder: Path, tmp_path: Path, table: Callable[..., Path]
) -> None:
    picture(tmp_path / "more" / "new.png", 7)
    picture(tmp_path / "more" / "other.png", 8)
    rows = [*listed(folder), ["new.png", "", "train"], ["other.png", "-1", "training"]]
    task = ImageManifest(file=table(rows), folder=(folder, tmp_path / "more"), **SIZE)
    data = task.load()
    assert task.unlabelled == 2
    assert data.train.labels.tolist().count(-1) == 2
    assert len(data.train) == 26
    assert next(iter(data.train.batches([torch.arange(26)], None))).shape == (26, 3, 8, 8)


def test_classes_are_in_the_order_of_numbers_or_as_told(folder: Path, table: Callable[..., Path]) -> None:
    rows = [[path, "10" if label == "cat" else "9", split] for path, label, split in listed(folder)]
    assert ImageManifest(file=table(rows), folder=folder).class_names == ("9", "10")
    file = table(listed(folder))
    task = ImageManifest(file=file, folder=folder, classes=("dog", "cat", "cow"), **SIZE)
    assert task.num_classes == 3
    assert set(task.samples()["train"].labels.tolist()) == {0, 1}


def test_identity_follows_labels_and_pictures_of_what_is_learned_and_test_apart(
    folder: Path, table: Callable[..., Path]
) -> None:
    rows = listed(folder)
    task = ImageManifest(file=table(rows), folder=folder)
    content, test = task.content(), task.test_content()
    table([*reversed(rows)])
    assert (task.content(), task.test_content()) == (content, test)
    first_test = next(row for row in rows if row[2] == "test")
    picture(folder / first_test[0], 99)
    assert task.content() == content
    assert task.test_content() != test
    first = next(row for row in rows if row[2] == "train")
    first[1] = "dog"
    table(rows)
    assert task.content() != content


def replace(rows: list[list[str]], row: int, column: int, text: str) -> None:
    rows[row][column] = text


WRONG: dict[str, tuple[Callable[[list[list[str]]], Any], str, str]] = {
    "no such column": (lambda rows: None, "file,label,split", "no column `path`, it has `file`, `label`, `split`"),
    "no such picture": (lambda rows: replace(rows, 2, 0, "cat/none.png"), "", "line 4: no picture `cat/none.png`"),
    "two columns": (lambda rows: None, "path,label,label", "has several columns `label`"),
    "outside": (lambda rows: replace(rows, 0, 0, "../x.png"), "", "line 2: `../x.png` is no path below a folder"),
    "absolute": (lambda rows: replace(rows, 0, 0, "/etc/x.png"), "", "is no path below a folder"),
    "twice": (lambda rows: replace(rows, 3, 0, rows[1][0]), "", "line 5: `{}` is in line 3 already"),
    "no split": (lambda rows: replace(rows, 1, 2, "trian"), "", "line 3: `trian` is no split"),
    "cells": (lambda rows: rows[1].append("x"), "", "line 3: 4 cells below 3 columns"),
    "unlabelled test": (lambda rows: replace(rows, 0, 1, ""), "", "a picture of the test split has no label"),
    "nothing to train on": (lambda rows: [row.__setitem__(2, "test") for row in rows], "", "marks no row as `train`"),
    "nothing": (lambda rows: rows.clear(), "", "has no row below"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "header", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_with_its_line(
    folder: Path,
    table: Callable[..., Path],
    change: Callable[[list[list[str]]], Any],
    header: str,
    words: str,
) -> None:
    rows = listed(folder)
    second = rows[1][0]
    change(rows)
    task = ImageManifest(file=table(rows, header or "path,label,split"), folder=folder, **SIZE)
    with pytest.raises(ValueError, match=r"labels\.csv") as refused:
        task.load()
    assert words.format(second) in str(refused.value)


def test_a_label_beside_the_classes_and_a_file_that_is_no_text(
    folder: Path, table: Callable[..., Path]
) -> None:
    file = table(listed(folder))
    with pytest.raises(ValueError, match="line 22: the label `dog` is none of the 1 `classes`"):
        ImageManifest(file=file, folder=folder, classes=("cat",)).samples()
    file.write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(ValueError, match="is no table of UTF-8 text"):
        ImageManifest(file=file, folder=folder).samples()
    assert "finds no table" in str(ImageManifest(file=folder / "none.csv").missing_files())


def test_folders_without_splits_are_cut_and_several_are_taken_together(folder: Path, tmp_path: Path) -> None:
    plain = ImageFolder(folder=folder / "train", cut=Cut(stratified=True), test_fraction=0.25, **SIZE)
    parts = plain.samples()
    assert {split: np.bincount(part.labels).tolist() for split, part in parts.items()} == {
        "train": [9, 9],
        "test": [3, 3],
    }
    both = ImageFolder(folder=(folder / "train", folder / "test"), **SIZE)
    assert sum(len(part.ids) for part in both.samples().values()) == 32
    assert both.class_names == CLASSES
    store = both.store()
    assert all(store.read(place, 3) for part in both.samples().values() for place in part.inputs.tolist())


def test_the_folder_within_a_class_is_a_group(tmp_path: Path) -> None:
    for label, name in enumerate(CLASSES):
        for patient in range(6):
            for index in range(3):
                path = tmp_path / name / f"patient{patient}" / f"{index}.png"
                picture(path, 100 * label + 10 * patient + index)
    data = ImageFolder(folder=tmp_path, cut=Cut(by="group"), validation_fraction=0.2, **SIZE).load()
    sides = [
        {Path(place).parent.name for place in split.places}
        for split in (data.train, data.validation, data.test)
    ]
    assert all(sides)
    assert sum(map(len, sides)) == 6


def test_the_class_may_be_the_last_folder_at_any_depth(tmp_path: Path) -> None:
    places = {}
    for number in range(40):
        label = CLASSES[number % 2]
        above = ("", f"site{number % 5}/", f"north/site{number % 5}/")[number % 3]
        places[f"{above}{label}/{number}.png"] = label
        picture(tmp_path / f"{above}{label}/{number}.png", number)
    task = ImageFolder(folder=tmp_path, class_folder="last", cut=Cut(by="group"), **SIZE)
    assert task.missing_files() is None
    assert task.class_names == CLASSES
    parts = task.samples()
    found = {
        place: CLASSES[label]
        for part in parts.values()
        for place, label in zip(part.inputs.tolist(), part.labels.tolist(), strict=True)
    }
    assert found == places
    sides = [
        {Path(place).parent.parent for place in part.inputs.tolist() if place.count("/") > 1}
        for part in parts.values()
    ]
    assert not sides[0] & sides[1]
    assert not [finding for finding in task.left_out() if "deeper" in finding.text]
    plain = ImageFolder(folder=tmp_path, **SIZE)
    assert plain.class_names == ("cat", "dog", "north", *(f"site{number}" for number in range(5)))
    assert "class_folder" not in plain.identity()
    assert task.identity()["class_folder"] == "last"


def test_a_quotation_mark_that_is_not_closed_is_named_by_the_line_it_stands_in(
    folder: Path, table: Callable[..., Path]
) -> None:
    file = table(listed(folder))
    lines = file.read_text().splitlines()
    lines[3] = '"' + lines[3]
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r", line 4: .*; is a quotation mark not closed\?"):
        ImageManifest(file=file, folder=folder).class_names  # noqa: B018


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_survey_asks_the_file_system_once_for_each_picture(
    folder: Path, table: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, on_error: Any
) -> None:
    task = ImageManifest(file=table(listed(folder)), folder=folder, on_error=on_error, **SIZE)
    asked: Counter[str] = Counter()
    plain = os.stat

    def counting(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        asked[str(path)] += 1
        return plain(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", counting)
    survey = survey_task(task)
    assert {path: count for path, count in asked.items() if path.endswith(".png")} == {
        str(path): 1 for path in folder.rglob("*.png")
    }
    assert survey.counts["train"] == (12, 12)


def test_a_dry_run_counts_what_a_run_would_where_broken_pictures_are_skipped(
    folder: Path, table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(picture_survey, "YOUNG_SECONDS", -1)
    (folder / "train/cat/3.png").write_bytes(b"no picture")
    task = ImageManifest(file=table(listed(folder)), folder=folder, on_error="skip", **SIZE)
    before = survey_labels(task)
    assert before is not None
    assert before.counts["train"] == (12, 12)
    assert any("40 pictures are counted that nobody has read yet" in found.text for found in before.findings)
    surveyed = survey_task(task)
    after = survey_labels(task)
    assert after is not None
    assert after.counts == surveyed.counts
    assert surveyed.counts["train"] == (11, 12)
