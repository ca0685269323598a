"""Every metric against scikit-learn, a loop over samples, or a value worked out by hand; and who may name them."""

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as oracle

from raydistill.errors import StageError
from raydistill.metrics import (
    METRICS,
    Accuracy,
    Agreement,
    Answers,
    BalancedAccuracy,
    CalibrationError,
    Errors,
    Loss,
    MacroF1,
    Metric,
    Samples,
    Top5Accuracy,
    WorstClassRecall,
    compute_all,
    written,
)

ROOT = Path(__file__).parents[1]


def drawn(samples: int, classes: int, seed: int = 0, present: int | None = None) -> Answers:
    """Answers that are better than chance; only the first `present` classes have samples."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(present or classes, size=samples)
    logits = draw.normal(size=(samples, classes)).astype(np.float32)
    logits[np.arange(samples), labels] += 1
    return Answers.of(logits, labels)


def of_predictions(predicted: list[int], labels: list[int], classes: int) -> Answers:
    return Answers.of(np.eye(classes, dtype=np.float32)[predicted], np.array(labels))


@pytest.mark.parametrize(
    ("classes", "present"), [(2, 2), (3, 3), (10, 10), (10, 7), (100, 40)], ids=lambda number: str(number)
)
def test_the_table_says_what_scikit_learn_says(classes: int, present: int) -> None:
    answers = drawn(300, classes, present=present)
    labels, predicted = answers.labels, answers.logits.argmax(axis=1)
    recalls = oracle.recall_score(labels, predicted, labels=np.unique(labels), average=None)
    exponentials = np.exp(answers.logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = {
        Accuracy: oracle.accuracy_score(labels, predicted),
        Errors: oracle.zero_one_loss(labels, predicted, normalize=False),
        Samples: 300,
        Loss: oracle.log_loss(labels, probabilities, labels=range(classes)),
        BalancedAccuracy: recalls.mean(),
        MacroF1: oracle.f1_score(labels, predicted, average="macro", zero_division=0),
        WorstClassRecall: recalls.min(),
    }
    for metric, value in expected.items():
        assert metric().compute(answers) == pytest.approx(value, abs=1e-6), metric.name
    if present == classes:
        assert BalancedAccuracy().compute(answers) == oracle.balanced_accuracy_score(labels, predicted)


def test_calibration_error_is_the_distance_of_confidence_and_accuracy_bin_by_bin() -> None:
    answers = drawn(500, 4)
    total = 0.0
    for low in np.arange(15) / 15:
        rows = [
            (row.max(), row.argmax() == label)
            for row, label in zip(answers.probabilities, answers.labels, strict=True)
            if low < row.max() <= low + 1 / 15
        ]
        if rows:
            confidence, right = np.mean(rows, axis=0)
            total += len(rows) / 500 * abs(confidence - right)
    assert CalibrationError().compute(answers) == pytest.approx(total, abs=1e-6)


def test_metrics_of_seven_answers_by_hand() -> None:
    # Class 0: 3 of 4, class 1: 1 of 2, class 2: 1 of 1; class 3 has no sample and is never predicted.
    answers = of_predictions([0, 0, 0, 1, 1, 0, 2], [0, 0, 0, 0, 1, 1, 2], classes=4)
    assert BalancedAccuracy().compute(answers) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert WorstClassRecall().compute(answers) == 0.5
    assert MacroF1().compute(answers) == pytest.approx((6 / 8 + 2 / 4 + 1) / 3)


def test_a_class_without_samples_that_is_predicted_counts_in_macro_f1_alone() -> None:
    answers = of_predictions([0, 3, 1, 1], [0, 0, 1, 1], classes=4)
    assert BalancedAccuracy().compute(answers) == 0.75
    assert MacroF1().compute(answers) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_of_equal_logits_the_first_class_is_predicted_and_the_first_five_are_among_five() -> None:
    classes = 30
    answers = Answers.of(np.zeros((classes, classes), np.float32), np.arange(classes))
    assert Accuracy().compute(answers) == 1 / classes
    assert Top5Accuracy().compute(answers) == 5 / classes


@pytest.mark.parametrize("classes", [21, 200])
def test_top_5_is_what_sorting_finds(classes: int) -> None:
    answers = drawn(400, classes)
    best = answers.logits.argsort(axis=1)[:, -5:]
    found = sum(label in row for label, row in zip(answers.labels, best, strict=True))
    assert Top5Accuracy().compute(answers) == found / 400
    assert Top5Accuracy().compute(answers) == oracle.top_k_accuracy_score(
        answers.labels, answers.logits, k=5, labels=range(classes)
    )


def test_top_5_of_three_classes_is_always_right_and_so_is_not_told() -> None:
    answers = drawn(50, 3)
    assert Top5Accuracy().compute(answers) == 1.0
    assert Top5Accuracy.name not in compute_all(METRICS, answers)
    assert Top5Accuracy.name not in compute_all(METRICS, drawn(50, 20))
    assert Top5Accuracy.name in compute_all(METRICS, drawn(50, 21))


def test_a_logit_that_is_no_number_is_no_answer_among_five() -> None:
    logits, labels = np.zeros((10, 21), np.float32), np.full(10, 7)
    logits[:, 7] = 50
    logits[3] = math.nan
    answers = Answers.of(logits, labels)
    assert Top5Accuracy().compute(answers) == 0.9


def test_agreement_counts_what_the_teacher_says_right_or_wrong() -> None:
    alone = of_predictions([0, 1, 1, 2], [0, 0, 1, 1], classes=3)
    assert Agreement.name not in compute_all(METRICS, alone)
    taught = Answers.of(alone.logits, alone.labels, teacher=np.array([0, 1, 2, 0]))
    assert compute_all(METRICS, taught)[Agreement.name] == 0.5


def test_what_is_not_known_every_epoch_is_computed_at_the_end_alone() -> None:
    class Slow(Metric):
        name = "slow"
        every_epoch = False

        def compute(self, answers: Answers) -> float:
            return 0.25

    answers = drawn(9, 3)
    assert compute_all([Accuracy, Slow], answers)["slow"] == 0.25
    assert set(compute_all([Accuracy, Slow], answers, only_every_epoch=True)) == {Accuracy.name}


def test_a_metric_of_the_users_that_fails_is_named() -> None:
    class Broken(Metric):
        name = "broken"

        def compute(self, answers: Answers) -> float:
            return float(answers.labels[10**6])

    with pytest.raises(StageError, match="metric `broken`: IndexError: index 1000000"):
        compute_all([Broken], drawn(9, 3))


@pytest.mark.parametrize(
    ("form", "alone", "spread"),
    [
        ("percent", "95.10 %", "95.10 % ± 0.21"),
        ("count", "1", "1.0 ± 0.0"),
        ("nats", "0.951", "0.951 ± 0.002"),
        ("number", "0.951", "0.951 ± 0.002"),
    ],
)
def test_values_are_written_as_their_kind_is_read(form: str, alone: str, spread: str) -> None:
    assert written(form, 0.951) == alone
    assert written(form, 0.951, 0.0021) == spread


# Curves of a training's own mean over its batches, and counts of rows in a store: numbers of other things.
OTHERS = re.compile(r"^(train|steps|synthesize|statistics|targets)/")
OWNERS = ("metrics.py", "kinds")


def test_no_metric_is_named_outside_of_the_table_of_kinds_and_of_plans() -> None:
    is_spelled = re.compile(rf"/({'|'.join(metric.name for metric in METRICS)})\b")
    spelled = []
    for path in sorted((ROOT / "orchestrator").rglob("*.py")):
        if path.relative_to(ROOT / "orchestrator").parts[0] in OWNERS:
            continue
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in docstrings else None
            if isinstance(text, str) and is_spelled.search(text) and not OTHERS.match(text):
                spelled.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
    assert spelled == []


def test_no_page_of_a_report_names_a_metric() -> None:
    names = "|".join(metric.name for metric in METRICS)
    name_in_a_record = re.compile(rf"(validation|test)/({names})")
    pages = list((ROOT / "orchestrator" / "report" / "templates").glob("*.html"))
    assert len(pages) > 5
    assert [page.name for page in pages if name_in_a_record.search(page.read_text(encoding="utf-8"))] == []
