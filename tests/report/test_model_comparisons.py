"""The report's section on models side by side: which numbers stand where, and what it does with a damaged file."""

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.report import write_report
from raydistill.report.model_comparisons import read_model_comparisons
from raydistill.report.summary import summarize_run
from raydistill.runs.view import open_run

Start = Callable[..., Any]

WRITTEN: dict[str, Any] = {
    "split": "validation",
    "samples": 40,
    "of": 400,
    "batch": 20,
    "class_names": ["cat", "<b>dog", "emu"],
    "models": [
        {"layers": ["stage1", "logits"], "right": 30, "seen_at": "stage1"},
        {"layers": ["hidden1", "embedding", "logits"], "right": 20, "unseen": "none of its layers has maps"},
    ],
    "cka": [[1, 0.5, 0.11, 0.12, 0.13], [0.5, 1, 0.21, "NaN", -0.004]] + [[0.1, 0.2, 1, 1, 1]] * 3,
    "mismatch": [[0, 1, 0.31, 0.32, 0.33], [1, 0, 0.41, 0.42, 1.25]] + [[0.1, 0.2, 0, 0, 0]] * 3,
    "pairs": [
        {
            "first": 0,
            "second": 1,
            "same": 22,
            "both_right": 18,
            "only_first_right": 12,
            "only_second_right": 2,
            "same_error": 4,
            "by_class": [[20, 5], [20, 17], [0, 0]],
            "confusions": [[0, 0, 1, 12], [1, 2, 2, 4]],
            "parted": [17, 4711],
        }
    ],
}


def run_with_comparison(
    start: Start, root: Path, written: dict[str, Any], pictures: dict[str, np.ndarray] | None = None
) -> Any:
    run = start(root)
    run.stage("teacher", errors=3)
    run.stage("student", "distill", role="student", errors=5)
    files: dict[str, Any] = {"comparison.json": json.dumps(written)}
    if pictures is not None:
        files["grad_cam.safetensors"] = pictures
    run.stage("beside", "compare_models", role="comparison", reads=["teacher", "student"], files=files)
    return run


def section(run: Any, root: Path) -> str:
    page = write_report(run.write(), root).read_text()
    return page.partition('<h2 id="models-beside">')[2].partition("<h2")[0]


def seen(shape: tuple[int, ...] = (2, 1, 8, 8)) -> dict[str, np.ndarray]:
    return {
        "pictures": np.full(shape, 200, dtype=np.uint8),
        "ids": np.array([17, 4711]),
        "labels": np.array([0, 1]),
        "answers_0": np.array([0, 2]),
        "answers_1": np.array([1, 2]),
        "maps_0": np.array([np.eye(4), np.zeros((4, 4))], dtype=np.float32),
    }


def test_a_block_is_what_the_first_models_layers_have_with_the_seconds(
    tmp_path: Path, fake_run: Start
) -> None:
    run = run_with_comparison(fake_run, tmp_path, WRITTEN)
    (found,), problems = read_model_comparisons(open_run(run.write(), tmp_path))
    assert not problems
    (pair,) = found.drawn_pairs
    np.testing.assert_equal(found.block("cka", pair), [[0.11, 0.12, 0.13], [0.21, np.nan, -0.004]])
    np.testing.assert_equal(found.block("mismatch", pair), [[0.31, 0.32, 0.33], [0.41, 0.42, 1.25]])


def test_the_page_shows_agreement_layers_and_pictures(tmp_path: Path, fake_run: Start) -> None:
    run = run_with_comparison(fake_run, tmp_path, WRITTEN, seen())
    shown = section(run, tmp_path)
    # NaN has no cell, and what is a little below 0 no sign.
    assert re.findall(r">(\d\.\d\d)<", shown) == [
        *("0.11", "0.12", "0.13", "0.21", "0.00"),
        *("0.31", "0.32", "0.33", "0.41", "0.42", "1.25"),
    ]
    text = unescape(re.sub(r"<[^>]+>|\s+", " ", shown))
    words = " ".join(text.split())
    assert "55.0 % 18 12 2 8 4" in words  # of 40: 22 the same, and 8 both wrong
    assert "cat 20 25.0 %" in words
    assert "<b>dog 20 85.0 %" in words  # a name is no markup
    assert "emu 0" not in words
    assert "cat right <b>dog 12" in words
    assert "17 and 4711" in words
    assert "student has no Grad-CAM: none of its layers has maps." in words
    plots = {path.name for path in (run.folder / "plots").iterdir()}
    assert {
        "cka-beside-teacher-student.png",
        "mismatch-beside-teacher-student.png",
        "grad-cam-beside.png",
    } <= plots


def test_a_map_reaches_from_0_to_1_and_a_dead_one_stays_0(tmp_path: Path, fake_run: Start) -> None:
    maps = seen() | {"maps_0": np.array([5 * np.eye(4), np.zeros((4, 4))], dtype=np.float32)}
    run = run_with_comparison(fake_run, tmp_path, WRITTEN, maps)
    ((found,), _) = read_model_comparisons(open_run(run.write(), tmp_path))
    first, second = found.pictures
    assert (first.sample, first.answers, second.label) == (17, (0, 1), 1)
    assert first.maps[1] is None
    np.testing.assert_array_equal(first.maps[0], np.eye(4))
    np.testing.assert_array_equal(second.maps[0], np.zeros((4, 4)))


def test_of_many_models_each_is_drawn_beside_the_first_alone(tmp_path: Path, fake_run: Start) -> None:
    model, (pair,) = {"layers": ["logits"], "right": 1}, WRITTEN["pairs"]
    pairs = [pair | {"first": first, "second": second} for second in range(4) for first in range(second)]
    square = np.eye(4).tolist()
    written = WRITTEN | {"models": [model] * 4, "pairs": pairs, "cka": square, "mismatch": square}
    run = fake_run(tmp_path)
    names = [f"teacher.{index}" for index in range(4)]
    for name in names:
        run.stage(name, errors=3)
    files = {"comparison.json": json.dumps(written)}
    run.stage("beside", "compare_models", role="comparison", reads=names, files=files)
    shown = section(run, tmp_path)
    assert shown.count("<figure>") == 2 * 3
    assert "Drawn beside the first model alone" in shown


@pytest.mark.parametrize(
    "damage",
    [
        {"cka": [[1.0]]},
        {"models": WRITTEN["models"][:1]},
        {"pairs": [WRITTEN["pairs"][0] | {"second": 7}]},
        {"pairs": []},
        {"samples": 0},
    ],
)
def test_a_damaged_comparison_is_a_gap_that_names_the_file(
    tmp_path: Path, fake_run: Start, damage: dict[str, Any]
) -> None:
    run = run_with_comparison(fake_run, tmp_path, WRITTEN | damage)
    page = write_report(run.write(), tmp_path).read_text()
    assert "comparison.json` is damaged" in page.partition("<h2>Models side by side</h2>")[2][:400]


def test_damaged_pictures_are_a_gap_too(tmp_path: Path, fake_run: Start) -> None:
    few = {key: values for key, values in seen().items() if key != "answers_1"}
    run = run_with_comparison(fake_run, tmp_path, WRITTEN, few)
    page = write_report(run.write(), tmp_path).read_text()
    assert "grad_cam.safetensors` is damaged" in page.partition("<h2>Models side by side</h2>")[2][:400]


@pytest.mark.parametrize("is_stored", [False, True])
def test_the_mismatch_of_a_methods_own_layers_is_their_mean_or_weighted_by_attention(
    tmp_path: Path, fake_run: Start, is_stored: bool
) -> None:
    logged = {"train/attention/hidden1/stage1": 0.25, "train/attention/hidden1/logits": 0.75}
    line = {"step": 1, "epoch": 1, "train/loss": 1.0, **logged}
    mismatch = np.arange(25.0).reshape(5, 5)
    run = fake_run(tmp_path)
    run.stage("teacher", errors=3)
    compared = {
        "hints": [["embedding", "stage1"]],
        "ofd": [["hidden1", "stage1"], ["logits", "logits"]],
        "review": [["hidden1", "stage1"], ["embedding", "stage9"]],  # of which the last was not compared here
    }
    student = {"lines": [line], "files": {"compared_layers.json": json.dumps(compared)}}
    if is_stored:
        run.stage("teacher.targets", "predict_targets", reads=["teacher"])
    reads = ["teacher.targets" if is_stored else "teacher"]
    run.stage("student", "distill", role="student", errors=5, reads=reads, **student)
    files = {"comparison.json": json.dumps(WRITTEN | {"mismatch": mismatch.tolist()})}
    run.stage("beside", "compare_models", role="comparison", reads=["teacher", "student"], files=files)
    summary = summarize_run(open_run(run.write(), tmp_path))
    rows = summary.model_comparisons[0].of_methods(summary.attention)
    # Rows of the matrix: the teacher's stage1 and logits, the student's hidden1, embedding and logits.
    assert [(row.method, row.pairs, row.mismatch) for row in rows] == [
        ("attention", 2, 0.25 * mismatch[2, 0] + 0.75 * mismatch[2, 1]),
        ("hints", 1, mismatch[3, 0]),
        ("ofd", 2, (mismatch[2, 0] + mismatch[4, 1]) / 2),
    ]
    assert "weighted by the last epoch" in section(run, tmp_path)
