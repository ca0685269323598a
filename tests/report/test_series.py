"""The report on stages that differ in one thing: part of the data, early stopping, temperature."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from raydistill.report import write_report
from raydistill.report.comparison import compare
from raydistill.report.page import build_page
from raydistill.report.plot_lines import distinct_colours, round_numbers
from raydistill.report.summary import choose_main, summarize_run
from raydistill.report.sweep import find_sweep
from raydistill.report.theme import light
from raydistill.runs.view import open_run

Start = Callable[..., Any]
MLP = {"name": "mlp", "options": {"widths": [800, 800]}}


def text_of(run: Any) -> str:
    """The page without plots, its tags taken away."""
    html = build_page(summarize_run(open_run(run.write(), run.root)), [])
    html = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html).replace("\N{NO-BREAK SPACE}", " "))


def curve(train: list[float], validation: list[float]) -> list[dict[str, float]]:
    """Lines of a metrics.jsonl."""
    return [
        {
            "step": epoch,
            "epoch": epoch,
            "train/loss": 1.0,
            "train/accuracy": seen,
            "validation/accuracy": held_out,
            "validation/loss": 1 - held_out,
        }
        for epoch, (seen, held_out) in enumerate(zip(train, validation, strict=True), start=1)
    ]


def soft(temperature: float, **method: float) -> dict[str, Any]:
    """The config of a student that is taught at a temperature."""
    return {
        "stage": "distill",
        "student": MLP,
        "method": {"method": "hinton", "temperature": temperature, "soft_weight": 1.0, **method},
    }


@pytest.fixture
def regularised(tmp_path: Path, fake_run: Start) -> Any:
    """The three rows of the paper and a fourth with early stopping."""
    run = fake_run(tmp_path)
    everything = {"stage": "train", "model": MLP, "transfer": {"fraction": 1.0}}
    part = {**everything, "transfer": {"fraction": 0.03, "omit_classes": [3, "<owl>"]}}
    run.stage("tiny", errors=9, config={**part, "model": {"name": "cnn"}}, lines=curve([0.1] * 2, [0.1] * 2))
    run.stage("hard-all", config=everything, errors=41, samples=100, lines=curve([0.5, 0.634], [0.4, 0.6]))
    for index, accuracy in enumerate((0.7, 0.8)):
        run.stage(
            f"hard-part.{index}",
            role="baseline",
            config=part,
            errors=50 + index,
            samples=100,
            lines=curve([0.5, accuracy], [0.4, 0.4]),
        )
    run.stage(
        "stopped",
        role="baseline",
        config={**part, "early_stopping": {"patience": 1, "metric": "accuracy"}},
        errors=55,
        samples=100,
        lines=curve([0.2, 0.673, 0.9, 0.95], [0.3, 0.5, 0.5, 0.4]),
    )
    run.stage(
        "soft-part",
        "distill",
        role="student",
        reads=["hard-all"],
        config={**soft(2.0, hard_weight=0.5), "transfer": {"fraction": 0.03}},
        errors=43,
        samples=100,
        lines=curve([0.5, 0.654], [0.5, 0.57]),
    )
    return run


def test_hard_and_soft_targets_on_parts_of_the_data_are_one_table(regularised: Any) -> None:
    text = text_of(regularised)
    assert "hard-all hard 100 % 63.4 % 91.0 % 59.0 % 2 " in text
    assert "hard-part ×2 hard 3 %, without 3 and &lt;owl&gt; 75.0 ± 7.1 % 91.0 ± 0.0 % 49.5 ± 0.7 %" in text
    assert "soft-part soft, T = 2 + 0.5 × hard 3 % 65.4 % 91.0 % 57.0 % 2 " in text
    assert "tiny hard" not in text, "another architecture is not compared"


def test_early_stopping_names_the_epoch_that_was_kept_and_its_train_accuracy(regularised: Any) -> None:
    assert "stopped hard 3 %, without 3 and &lt;owl&gt; 67.3 % 91.0 % 45.0 % kept 2 of 4" in text_of(
        regularised
    )


def test_the_epoch_with_the_smallest_loss_is_kept_when_the_loss_decides(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    config = {"model": MLP, "early_stopping": {"patience": 9, "metric": "loss"}}
    run.stage("a", config=config, errors=5, lines=curve([0.1, 0.2, 0.3], [0.5, 0.9, 0.7]))
    run.stage("b", config={"model": MLP}, errors=5, lines=curve([0.1], [0.5]))
    assert "kept 2 of 3" in text_of(run)


def test_train_and_validation_curves_are_drawn(regularised: Any) -> None:
    report = write_report(regularised.write(), regularised.root)
    for part in ("train", "validation"):
        assert (report.parent / "plots" / f"transfers-0-{part}.png").exists()
        assert f'aria-label="{part.capitalize()} accuracy by what was learned from"' in report.read_text()


def test_models_that_saw_the_same_data_are_no_table_of_parts(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("teacher", config={"model": MLP, "transfer": {"fraction": 0.5}}, errors=3)
    run.stage("student", "distill", role="student", config={"student": {"name": "cnn"}}, errors=3)
    run.stage("other", "distill", role="student", config={"student": {"name": "cnn"}}, errors=4)
    assert "Targets and parts of the data" not in text_of(run)


def test_unlabelled_samples_have_no_train_accuracy(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("hard", config={"model": MLP}, errors=5, lines=curve([0.1], [0.5]))
    silent = [{"step": 1, "epoch": 1, "train/loss": 1.0, "validation/accuracy": 0.5}]
    config = {**soft(2.0), "transfer": {"fraction": 0.5, "labelled": False}}
    run.stage("soft", "distill", role="student", config=config, errors=5, lines=silent)
    text = text_of(run)
    assert "soft soft, T = 2 50 %, unlabelled – 91.0 %" in text
    assert "No train accuracy is known of soft." in text


def add_sweep(
    run: Any, model: Mapping[str, Any], points: Mapping[float, tuple[list[int], list[float]]], name: str
) -> None:
    """A student at several temperatures: test errors and validation accuracies of its replicas."""
    for temperature, (errors, accuracies) in points.items():
        for index, (number, accuracy) in enumerate(zip(errors, accuracies, strict=True)):
            run.stage(
                f"{name}-t{temperature:g}.{index}",
                "distill",
                role="student",
                config={**soft(temperature), "student": dict(model), "seed": index},
                errors=number,
                parameters=100 * len(name),
                metrics={"validation/accuracy": accuracy},
            )


def test_a_sum_of_methods_has_the_temperature_of_the_one_that_has_any(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    for heat in (1.0, 2.0, 4.0):
        methods = [{"method": "fsp", "weight": 0.1}, soft(heat)["method"]]
        config = {"student": MLP, "method": None, "methods": methods}
        run.stage(f"t{heat:g}", "distill", role="student", config=config, errors=9)
    sweep = find_sweep(compare(open_run(run.write(), tmp_path)).competitors)
    assert sweep is not None
    assert sweep.temperatures == [1, 2, 4]
    assert summarize_run(open_run(run.write(), tmp_path)).temperature in (1, 2, 4)


def test_the_best_temperature_is_the_one_of_validation_not_of_test(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    points = {1.0: ([40, 44], [0.90, 0.92]), 4.0: ([20, 22], [0.91, 0.93]), 8.0: ([30, 30], [0.94, 0.95])}
    add_sweep(run, MLP, points, "wide")
    sweep = find_sweep(compare(open_run(run.write(), tmp_path)).competitors)
    assert sweep is not None
    (line,) = sweep.lines
    assert line.best == [8.0]
    assert line.close == []
    main = choose_main(summarize_run(open_run(run.write(), tmp_path)).comparison, sweep)
    assert main is not None
    assert main.name == "wide-t8"
    text = text_of(run)
    assert "student T = 1 T = 4 T = 8 chosen T" in text
    assert "42.0 ± 2.8 91.0 ± 1.4 % 21.0 ± 1.4 92.0 ± 1.4 % 30.0 ± 0.0 94.5 ± 0.7 %" in text
    assert "T is chosen by validation accuracy alone" in text
    assert "wide-t8 has the best validation accuracy of 3 students that differ in temperature" in text


def test_temperatures_within_the_deviation_of_the_best_are_called_close(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    points = {1.0: ([9, 9], [0.5, 0.5]), 2.0: ([9, 9], [0.88, 0.90]), 4.0: ([9, 9], [0.88, 0.92])}
    add_sweep(run, MLP, points, "wide")
    sweep = find_sweep(compare(open_run(run.write(), tmp_path)).competitors)
    assert sweep is not None
    assert (sweep.lines[0].best, sweep.lines[0].close) == ([4.0], [2.0])


def test_a_line_per_student_named_by_what_differs(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    points = {heat: ([30], [0.9]) for heat in (1.0, 2.0, 4.0)}
    add_sweep(run, {"name": "mlp", "options": {"widths": [30, 30], "dropout": 0.0}}, points, "w")
    add_sweep(run, {"name": "mlp", "options": {"widths": [300, 300], "dropout": 0.0}}, points, "wide")
    add_sweep(run, {"name": "mlp", "options": {"widths": [5], "dropout": 0.0}}, {1.0: ([9], [0.9])}, "n")
    sweep = find_sweep(compare(open_run(run.write(), tmp_path)).competitors)
    assert sweep is not None
    assert [line.label for line in sweep.lines] == ["mlp 300-300 (400)", "mlp 30-30 (100)"]
    report = write_report(run.write(), tmp_path)
    assert (report.parent / "plots" / "temperatures.png").exists()


@pytest.mark.parametrize("heats", [(1.0, 2.0), (4.0,)])
def test_fewer_than_three_temperatures_are_no_sweep(
    tmp_path: Path, fake_run: Start, heats: tuple[float, ...]
) -> None:
    run = fake_run(tmp_path)
    add_sweep(run, MLP, {heat: ([9], [0.9]) for heat in heats}, "wide")
    assert "Temperature and student" not in text_of(run)


def test_students_that_differ_in_more_than_temperature_are_not_one_line(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    for heat in (1.0, 2.0, 4.0):
        config = soft(heat, hard_weight=heat / 10)
        run.stage(f"t{heat:g}", "distill", role="student", config=config, errors=9)
    assert find_sweep(compare(open_run(run.write(), tmp_path)).competitors) is None


def test_round_numbers_enclose_what_was_measured() -> None:
    assert round_numbers(37, 210) == [20, 50, 100, 200, 500]
    assert round_numbers(1, 1) == [1]


def test_the_first_of_a_role_keeps_its_colour_and_others_differ() -> None:
    colours = distinct_colours(["teacher", "baseline", "baseline", "student", "student"])
    assert colours[0] == light("teacher")
    assert colours[1] == light("baseline")
    assert colours[3] == light("student")
    assert len(set(colours)) == 5
