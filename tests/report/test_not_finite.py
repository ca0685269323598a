"""Records, curves, predictions and trials whose numbers are not finite: a report says what is left."""

import math
from pathlib import Path

import numpy as np
import pytest
from built_runs import BuiltRun, BuiltSearch, made_up_predictions

from raydistill.report import write_report, write_search_report

NAN, INFINITE = math.nan, math.inf
LABELS = np.arange(40) % 4
JUDGED = ("test/errors", "test/accuracy", "test/ece", "validation/accuracy", "test/worst_class_recall")


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize("name", [*JUDGED, "test/samples"])
def test_a_metric_of_a_record(tmp_path: Path, name: str, value: float) -> None:
    run = BuiltRun(tmp_path)
    for index, number in enumerate((value, 0.5)):
        lost = {name: number}
        run.stage(
            f"model.{index}", role="model", parameters=10, metrics=lost, errors=3, accuracies=[0.5, value]
        )
    run.stage("student", "distill", role="student", parameters=10, errors=3, metrics={name: value})
    report = write_report(run.write(), tmp_path)
    assert '<h2 id="stages">' in report.read_text()


def test_every_metric_and_every_curve(tmp_path: Path) -> None:
    run = BuiltRun(tmp_path)
    lost = dict.fromkeys(JUDGED, NAN)
    lines = [{"step": 1, "epoch": 1, "train/loss": NAN, "validation/accuracy": NAN}]
    costs = dict.fromkeys(("seconds_per_step", "peak_bytes", "trained_parameters"), NAN)
    for role in ("teacher", "student", "baseline"):
        for index in range(2):
            run.stage(
                f"{role}-{index}", role=role, parameters=10, errors=3, metrics=lost, lines=lines, costs=costs
            )
    page = write_report(run.write(), tmp_path).read_text()
    assert "has no test result" in page
    assert "nan" not in page.replace("font", "").partition("</style>")[2]


def test_logits(tmp_path: Path) -> None:
    run = BuiltRun(tmp_path)
    broken = made_up_predictions(LABELS, 4, 3)
    broken["logits"][5] = NAN
    run.stage("teacher", **broken)
    run.stage("student", "distill", role="student", reads=["teacher"], **broken)
    assert "confuses" in write_report(run.write(), tmp_path).read_text()


def test_trials(tmp_path: Path) -> None:
    search = BuiltSearch(tmp_path, {"student.method.temperature": {"uniform": [1, 20]}})
    search.trial({"student.method.temperature": 2.0}, 0.9)
    for place, metric in enumerate((NAN, INFINITE, -INFINITE)):
        search.trial({"student.method.temperature": 3.0 + place}, metric)
    search.trial({"student.method.temperature": 9.0}, 0.8, epochs={1: NAN, 2: 0.7, 3: INFINITE})
    page = write_search_report(search.folder, search.run.root).read_text()
    assert "<b>Trial 1</b> is the best of" in page
