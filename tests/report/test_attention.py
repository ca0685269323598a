"""The report's map of attention: which numbers it shows, and for whom."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.report import write_report
from raydistill.report.attention import read_attention
from raydistill.report.comparison import compare
from raydistill.runs.view import open_run

Start = Callable[..., Any]


def lines(prefix: str, *epochs: list[list[float]]) -> list[dict[str, float]]:
    """Lines of a metrics.jsonl: attention (student stages, teacher stages) of each epoch."""
    return [
        {"step": epoch, "epoch": epoch, "train/loss": 1.0}
        | {
            f"{prefix}/stage{row}/stage{column}": value
            for row, values in enumerate(attention, start=1)
            for column, value in enumerate(values, start=1)
        }
        for epoch, attention in enumerate(epochs, start=1)
    ]


def run_with_attention(start: Start, root: Path) -> Any:
    run = start(root)
    run.stage("teacher", errors=3)
    for index, shift in enumerate((0.0, 0.1)):
        last = [[0.2 + shift, 0.3, 0.5 - shift], [0.125, 0.25, 0.625]]
        logged = lines("train/semckd/attention", [[0.3, 0.3, 0.4]] * 2, last)
        run.stage(f"calibrated.{index}", "distill", role="student", errors=5, lines=logged)
    run.stage("plain", role="baseline", errors=9)
    return run


def test_the_map_is_the_last_epochs_mean_over_replicas(tmp_path: Path, fake_run: Start) -> None:
    run = run_with_attention(fake_run, tmp_path)
    (found,) = read_attention(compare(open_run(run.write(), tmp_path)).competitors)
    assert found.name == "calibrated"
    assert found.student_layers == ("stage1", "stage2")
    assert found.teacher_layers == ("stage1", "stage2", "stage3")
    np.testing.assert_allclose(found.last, [[0.25, 0.3, 0.45], [0.125, 0.25, 0.625]])


def test_a_method_without_others_beside_it_is_found_too(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("alone", "distill", role="student", errors=5, lines=lines("train/attention", [[0.4, 0.6]]))
    (found,) = read_attention(compare(open_run(run.write(), tmp_path)).competitors)
    np.testing.assert_allclose(found.last, [[0.4, 0.6]])


def test_the_numbers_are_drawn_into_the_page_and_a_file(tmp_path: Path, fake_run: Start) -> None:
    run = run_with_attention(fake_run, tmp_path)
    report = write_report(run.write(), tmp_path)
    assert (report.parent / "plots" / "attention-calibrated.png").exists()
    section = report.read_text().partition('<h2 id="attention">')[2].partition("<h2")[0]
    drawn = re.findall(r">(\d\.\d{3})<", section)
    assert drawn == ["0.250", "0.300", "0.450", "0.125", "0.250", "0.625"]


def test_students_without_attention_have_no_section(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("student", "distill", role="student", errors=5)
    assert 'id="attention"' not in write_report(run.write(), tmp_path).read_text()
