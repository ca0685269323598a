"""What the report counts: spreads, intervals, baselines, mixtures of teachers, and the choice of examples."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from built_runs import fingerprint_of
from safetensors.torch import load_file

from raydistill.errors import StoreError
from raydistill.report import write_report
from raydistill.report.comparison import (
    compare,
    spread,
    total_parameters,
    wilson_interval,
)
from raydistill.report.examples import choose_samples, describe_examples, load_pictures, to_picture
from raydistill.report.formatting import (
    compact,
    elapsed,
    listing,
    mean,
    mean_percent,
    percent,
    ratio,
    shorten,
    whole,
)
from raydistill.report.predictions import (
    Teaching,
    error_overlap,
    read_teaching,
)
from raydistill.report.summary import choose_main, summarize_run
from raydistill.runs import stored_predictions
from raydistill.runs.stored_predictions import StoredPredictions, load_predictions
from raydistill.runs.view import open_run
from raydistill.training.evaluation import Predictions, save_predictions

Start = Callable[..., Any]


def judged(logits: list[list[float]], labels: list[int]) -> StoredPredictions:
    return StoredPredictions(np.arange(len(labels)), np.array(labels), np.array(logits, dtype=np.float32))


def taught(*members: StoredPredictions, weights: tuple[float, ...], rule: str = "arithmetic") -> Teaching:
    return Teaching("teacher", "teacher", tuple(map(str, range(len(members)))), members, weights, rule)


def test_spread_is_the_mean_and_the_deviation_of_a_sample() -> None:
    two = spread([90.0, 110.0])
    assert two is not None
    assert (two.mean, two.deviation) == (100, pytest.approx(200**0.5))
    one = spread([90.0])
    assert one is not None
    assert one.deviation is None
    assert spread([]) is None


def test_wilson_interval_agrees_with_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, samples, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(hits / samples, samples) == pytest.approx((low, high), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


def test_replicas_are_one_row_with_the_mean_of_their_errors(distilled: Any) -> None:
    rows = {row.name: row for row in compare(open_run(distilled.write(), distilled.root)).competitors}
    assert list(rows) == ["teacher", "student", "baseline"]
    assert rows["student"].errors.mean == 5
    assert rows["student"].errors.deviation == pytest.approx(2**0.5)
    assert rows["student"].error_rate == pytest.approx(5 / 40)


def test_a_student_is_measured_against_the_baseline_of_its_size(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("large", role="baseline", parameters=900, errors=10)
    run.stage("small", role="baseline", parameters=100, errors=50)
    run.stage("student", "distill", role="student", parameters=100, errors=40)
    run.stage("other", "distill", role="student", parameters=300, errors=20)
    comparison = compare(open_run(run.write(), run.root))
    rows = {row.name: row for row in comparison.competitors}
    assert comparison.share_of_baseline(rows["student"]) == pytest.approx(0.8)
    assert comparison.share_of_baseline(rows["other"]) == pytest.approx(2.0)
    assert comparison.share_of_baseline(rows["large"]) is None


def test_compression_counts_the_teachers_at_the_start_of_a_chain(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("teacher.0", parameters=600, errors=1)
    run.stage("teacher.1", parameters=600, errors=1)
    run.stage(
        "assistant", "distill", role="assistant", reads=["teacher.0", "teacher.1"], parameters=300, errors=2
    )
    run.stage("student", "distill", role="student", reads=["assistant"], parameters=100, errors=3)
    read = open_run(run.write(), run.root)
    student = compare(read).in_role("student")[0]
    assert [stage.name for stage in student.teachers] == ["teacher.0", "teacher.1"]
    assert total_parameters(student.teachers) == 1200
    assert student.compression == 12


def test_the_report_is_about_the_stage_called_student_if_it_has_a_result(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    run.stage("student", "distill", role="student", errors=3)
    run.stage("tiny", "distill", role="student", errors=4)
    main = choose_main(compare(open_run(run.write(), run.root)))
    assert main is not None
    assert main.name == "student"
    run.states["student"].status = "failed"
    main = choose_main(compare(open_run(run.write(), run.root)))
    assert main is not None
    assert main.name == "tiny"


def test_of_students_of_one_size_the_report_is_about_the_one_that_validation_chooses(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    for name, validation, parameters in (("hints", 0.93, 9), ("flow", 0.92, 9), ("large", 0.99, 20)):
        measured = {"validation/accuracy": validation}
        run.stage(name, "distill", role="student", errors=3, parameters=parameters, metrics=measured)
    run.stage("last", "distill", role="student", errors=1, parameters=9, metrics={"validation/accuracy": 0.9})
    main = choose_main(compare(open_run(run.write(), run.root)))
    assert main is not None
    assert main.name == "hints"


def test_an_arithmetic_mean_is_tempered_inside_and_a_geometric_one_outside() -> None:
    # Two classes, T = 2: softmax(ln 9 / 2) = (3/4, 1/4); the other teacher is undecided.
    sure, undecided = judged([[np.log(9), 0]], [0]), judged([[0, 0]], [0])
    arithmetic = taught(sure, undecided, weights=(0.5, 0.5))
    assert arithmetic.probabilities(2.0) == pytest.approx(np.array([[0.625, 0.375]]))
    geometric = taught(sure, undecided, weights=(0.5, 0.5), rule="geometric")
    root = 9**0.25
    assert geometric.probabilities(2.0) == pytest.approx(np.array([[root / (root + 1), 1 / (root + 1)]]))
    weighted = taught(sure, undecided, weights=(0.8, 0.2))
    assert weighted.probabilities(1.0)[0, 0] == pytest.approx(0.8 * 0.9 + 0.2 * 0.5)


def test_teachers_are_found_behind_stored_targets_with_their_recorded_weights(
    tmp_path: Path, fake_run: Start, predict: Start
) -> None:
    run, labels = fake_run(tmp_path), np.arange(12) % 3
    for name in ("wide", "deep"):
        run.stage(name, **predict(labels, 3, 1))
        run.stage(f"{name}.targets", "predict_targets", role="targets", inserted=True, reads=[name])
    combined = {
        "metrics": {"targets/weight/0": 0.75, "targets/weight/1": 0.25},
        "config": {"rule": "geometric"},
    }
    sources = ["wide.targets", "deep.targets"]
    run.stage(
        "wide+deep.targets", "combine_targets", role="targets", inserted=True, reads=sources, **combined
    )
    run.stage("student", "distill", role="student", reads=["wide+deep.targets"], **predict(labels, 3, 2))
    read = open_run(run.write(), run.root)
    student = read.stages["student"]
    teaching = read_teaching(read, student, student.predictions())
    assert (teaching.name, teaching.role, teaching.rule) == ("wide + deep", "ensemble", "geometric")
    assert dict(zip(teaching.names, teaching.weights, strict=True)) == {"wide": 0.75, "deep": 0.25}


def test_live_teachers_are_read_directly_with_the_weights_of_the_plan(
    tmp_path: Path, fake_run: Start, predict: Start
) -> None:
    run, labels = fake_run(tmp_path), np.arange(12) % 3
    run.stage("a", **predict(labels, 3, 1))
    run.stage("b", **predict(labels, 3, 1))
    config = {"mode": "live", "combine": {"rule": "arithmetic", "weights": [3, 1]}}
    run.stage("student", "distill", role="student", reads=["a", "b"], config=config, **predict(labels, 3, 2))
    read = open_run(run.write(), run.root)
    teaching = read_teaching(read, read.stages["student"], read.stages["student"].predictions())
    assert teaching.weights == (0.75, 0.25)


def test_what_a_student_goes_on_from_is_its_teacher_only_where_it_teaches(
    tmp_path: Path, fake_run: Start, predict: Start
) -> None:
    run, labels = fake_run(tmp_path), np.arange(12) % 3
    ref = {name: {"input": fingerprint_of(name)} for name in ("teacher", "first")}
    live = {"mode": "live", "teachers": [ref["teacher"]]}
    run.stage("teacher", **predict(labels, 3, 1))
    run.stage("first", "distill", role="assistant", reads=["teacher"], config=live, **predict(labels, 3, 3))
    learned = predict(labels, 3, 2)
    of_both = {"reads": ["first", "teacher"], "config": live | {"initial": ref["first"]}}
    run.stage("told", "distill", role="student", **of_both, **learned)
    run.stage("tuned", role="student", reads=["first"], config={"initial": ref["first"]}, **learned)
    itself = {"reads": ["teacher"], "config": live | {"initial": ref["teacher"]}}
    run.stage("again", "distill", role="student", **itself, **learned)
    read = open_run(run.write(), run.root)
    for name in ("told", "tuned", "again"):
        teaching = read_teaching(read, read.stages[name], read.stages[name].predictions())
        assert teaching.names == ("teacher",), name


def test_teachers_judged_on_other_samples_are_not_mixed_with_the_student(
    tmp_path: Path, fake_run: Start, predict: Start
) -> None:
    run, labels = fake_run(tmp_path), np.arange(12) % 3
    run.stage("teacher", ids=np.arange(12) + 5, **predict(labels, 3, 1))
    run.stage("student", "distill", role="student", reads=["teacher"], **predict(labels, 3, 2))
    read = open_run(run.write(), run.root)
    with pytest.raises(StoreError, match="other samples"):
        read_teaching(read, read.stages["student"], read.stages["student"].predictions())


def test_an_ensemble_that_no_stage_judges_is_counted_from_the_predictions(distilled: Any) -> None:
    summary = summarize_run(open_run(distilled.write(), distilled.root))
    row = next(row for row in summary.comparison.competitors if row.role == "ensemble")
    # The teachers err on the first 2 and the first 3 samples, both by the next class: together on 2 or 3.
    assert row.computed
    assert row.name == "2 × teacher"
    assert row.parameters == 4_000_000
    assert row.errors is not None
    assert row.errors.mean in (2, 3)


def test_an_ensemble_that_a_stage_judges_appears_once(distilled: Any) -> None:
    reads = ["teacher.0", "teacher.1"]
    distilled.stage(
        "ensemble", "evaluate", role="ensemble", reads=reads, parameters=4_000_000, errors=2, samples=40
    )
    summary = summarize_run(open_run(distilled.write(), distilled.root))
    assert [row.name for row in summary.comparison.in_role("ensemble")] == ["ensemble"]


def test_agreement_counts_who_is_wrong_where() -> None:
    student = judged([[1, 0], [1, 0], [1, 0], [0, 1]], [0, 1, 0, 1])
    pair = error_overlap("teacher", np.array([0, 0, 1, 1]), student.of_all(), np.arange(4))
    assert pair is not None
    assert (pair.both_wrong, pair.only_other_wrong, pair.only_student_wrong, pair.same_answer) == (1, 1, 0, 3)
    assert error_overlap("teacher", np.array([0, 0, 1, 1]), student.of_all(), np.arange(4) + 1) is None


def test_examples_are_uncertain_right_answers_of_the_teacher_and_sure_errors_of_the_student() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    unsure, sure = 0.5, 9.0
    teacher_logits = np.eye(3)[labels] * np.array([sure, unsure, sure, sure, sure, sure])[:, None]
    student_logits = np.eye(3)[[0, 1, 2, 1, 2, 2]] * np.array([5, 5, 5, 2, 8, 5])[:, None]
    student = judged(student_logits.tolist(), labels)
    teaching = taught(judged(teacher_logits.tolist(), labels), weights=(1.0,))
    chosen = choose_samples(student, teaching)
    assert chosen[0] == 1, "the sample of which the teacher is least sure comes first"
    assert {3, 4} <= set(chosen), "both errors of the student are shown"
    assert len(set(chosen)) == len(chosen)


def test_examples_spread_over_classes_before_a_class_comes_twice() -> None:
    labels = [0] * 20 + [1, 2, 3]
    logits = np.eye(4)[labels] * 2.0
    logits[:20] *= 0.2
    same = judged(logits.tolist(), labels)
    chosen = choose_samples(same, taught(same, weights=(1.0,)))
    assert sorted(labels[position] for position in chosen[:4]) == [0, 1, 2, 3]
    assert len(set(chosen)) == 8, "without errors to show, more uncertain ones take their place"


def test_an_example_shows_the_label_and_the_students_answer_among_its_classes() -> None:
    teacher = judged([[9, 8, 7, 6, 5, 4, 3, 2]], [7])
    student = judged([[0, 0, 0, 0, 0, 0, 5, 0]], [7])
    picture = np.zeros((2, 2), dtype=np.uint8)
    (example,) = describe_examples([0], student, taught(teacher, weights=(1.0,)), 4.0, [picture])
    assert [bar.label for bar in example.bars] == [0, 1, 2, 6, 7]
    assert (example.teacher_says, example.student_says) == (0, 6)
    tempered = np.exp(np.arange(9, 1, -1) / 4)
    assert example.bars[0].teacher[1] == pytest.approx(tempered[0] / tempered.sum(), rel=1e-5)


def test_pictures_are_those_with_the_ids_that_were_judged(distilled: Any) -> None:
    with np.load(distilled.task["file"]) as arrays:
        pixels, labels = arrays["inputs"], arrays["labels"]
    pictures = load_pictures(distilled.task, np.array([7, 3]), labels[[7, 3]])
    assert isinstance(pictures, list)
    assert (pictures[0] == pixels[7, 0]).all()
    assert (pictures[1] == pixels[3, 0]).all()


def test_pictures_of_changed_data_are_not_shown(distilled: Any) -> None:
    ids = np.array([7, 3])
    assert "has changed" in load_pictures(distilled.task, ids, np.array([0, 0]))
    assert "has changed" in load_pictures(distilled.task, ids + 1000, np.array([0, 0]))


def test_pictures_are_scaled_and_turned_into_rows_and_columns() -> None:
    assert to_picture(np.array([[[0.0, 0.5, 1.0]]])).tolist() == [[0, 128, 255]]
    assert to_picture(np.array([[[-1.0, 0.0, 1.0]]])).tolist() == [[0, 128, 255]]
    assert to_picture(np.zeros((3, 4, 5), dtype=np.uint8)).shape == (4, 5, 3)


def test_numbers_read_as_a_person_would_write_them() -> None:
    words = [
        *(elapsed(seconds) for seconds in (0.01, 9.94, 9.96, 119.4, 200, 7300)),
        *(compact(number) for number in (812, 39_760, 1_276_810, 25_557_032, None)),
        *(ratio(number) for number in (0.7, 6.12, 17.8)),
        *(percent(fraction) for fraction in (0.1014, None)),
        *(mean(spread(values)) for values in ([43.0], [1000.0, 1010.0])),
        mean_percent(spread([0.5, 0.6])),
        whole(1276810),
        listing(["a", "b", "c"]),
        shorten("abcdef", 4),
    ]
    assert [word.replace("\N{NO-BREAK SPACE}", " ") for word in words] == [
        *("< 0.1 s", "9.9 s", "10 s", "119 s", "3 min 20 s", "2 h 01 min"),
        *("812", "39.8 k", "1.28 M", "25.6 M", "–"),
        *("0.70×", "6.1×", "18×"),
        *("10.1 %", "–"),
        *("43", "1,005.0 ± 7.1"),
        "55.0 ± 7.1 %",
        "1,276,810",
        "a, b and c",
        "abc…",
    ]


@pytest.mark.parametrize(("level", "has_remainders"), [(0.0, False), (2000.0, True), (60_000.0, True)])
def test_predictions_are_those_a_model_was_judged_by_at_any_level_of_its_logits(
    level: float, has_remainders: bool, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(200, 5, generator=draw) + level, torch.arange(200) % 5
    context = SimpleNamespace(is_judged=False, path=tmp_path.joinpath)
    split = SimpleNamespace(ids=torch.arange(200), labels=labels)
    save_predictions(context, "test", split, Predictions.of(logits, split.labels))  # type: ignore[arg-type]
    name = "predictions-test.safetensors"
    assert ("remainders" in load_file(tmp_path / name)) == has_remainders
    found = load_predictions(tmp_path / name)
    exact = logits.double().softmax(dim=1).numpy()
    assert (found.predicted() == exact.argmax(axis=1)).all()
    assert (np.abs(found.probabilities() - exact) <= 0.02 * exact).all()


def test_where_logits_of_a_sample_are_stored_all_samples_are_counted_from_columns(
    distilled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = distilled.write()
    whole = summarize_run(open_run(folder, distilled.root))

    def sampled(path: Path) -> StoredPredictions:
        found = load_predictions(path)
        return found.at(np.arange(0, 40, 4))._replace(columns=found.of_all())

    monkeypatch.setattr(stored_predictions, "load_predictions", sampled)
    run = open_run(folder, distilled.root)
    summary = summarize_run(run)
    assert (whole.sampled, summary.sampled) == (None, 10)
    assert (summary.confusion == whole.confusion).all()
    assert summary.with_baseline == whole.with_baseline
    errors = {each.name: each.error for each in whole.calibrations}
    assert {each.name: each.error for each in summary.calibrations} == {
        name: error for name, error in errors.items() if name != "2 × teacher"
    }, "of two teachers together only the samples are known"
    assert summary.with_teacher is None
    assert summary.examples
    assert "logits of 10 samples" in " ".join(write_report(folder, distilled.root).read_text().split())
