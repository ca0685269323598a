"""Advice about plans that can be run but hardly mean what they say."""

from pathlib import Path

import pytest

from raydistill.plan.advice import advice, shared_folders
from raydistill.plan.load import validated
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.plan.written import parse_source

ROOT = Path(__file__).parents[2]
PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: cnn, widths: [4, 4]}, epochs: 1}
  student:
    stage: distill
    mode: live
    student: {name: cnn, widths: [4, 4]}
    teachers: [teacher]
    methods: [METHODS]
    epochs: 1
"""
AFTER = "  after: {stage: train, initial: student, model: {name: cnn, widths: [4, 4]}, epochs: 1}\n"


def lines_about(text: str) -> list[str]:
    source = parse_source(text, "plan.yaml")
    return list(advice(validated(source)))  # the data need not be there


@pytest.mark.parametrize("method", ["hints", "fsp", "semckd", "ofd", "triplet", "relational"])
def test_a_student_of_features_alone_that_nobody_goes_on_with_is_told(method: str) -> None:
    (line,) = lines_about(PLAN.replace("METHODS", f"{{method: {method}}}"))
    assert line.startswith("plan.yaml:10: stages.student.methods: trains no classifier")
    assert "{method: labels}" in line


@pytest.mark.parametrize("start", ["student", "student.0"])
def test_the_first_of_two_phases_is_in_order(start: str) -> None:
    text = PLAN.replace("METHODS", "{method: fsp}") + AFTER.replace("student", start)
    assert not lines_about(text)


def test_logits_beside_the_features_train_the_classifier_unless_they_have_no_weight() -> None:
    both = "{method: hinton}, {method: hints}"
    assert not lines_about(PLAN.replace("METHODS", both))
    assert not lines_about(PLAN.replace("METHODS", "{method: triplet_logits}"))
    assert not lines_about(PLAN.replace("METHODS", "{method: ca_mkd, feature_weight: 50}"))
    assert lines_about(PLAN.replace("METHODS", both.replace("hinton", "hinton, weight: 0")))


@pytest.mark.parametrize(
    "methods",
    [
        "{method: hinton, soft_weight: 0}",
        "{method: labels}",
        "{method: labels}, {method: hinton, weight: 0}",
        "{method: ebkd, soft_weight: 0}",
    ],
)
def test_a_teacher_that_nobody_hears_is_told(methods: str) -> None:
    (line,) = lines_about(PLAN.replace("METHODS", methods))
    assert line.startswith("plan.yaml:10: stages.student.methods: the teacher is run and not heard")


def test_a_teacher_that_is_heard_later_or_by_its_features_is_in_order() -> None:
    changes = "\n    epochs: 3\n    changes: [{after: 1, set: {methods.0.soft_weight: 1}}]\n"
    quiet = PLAN.replace("METHODS", "{method: hinton, soft_weight: 0}")
    assert not lines_about(quiet.replace("\n    epochs: 1\n", changes))
    assert not lines_about(PLAN.replace("METHODS", "{method: ca_mkd, soft_weight: 0, feature_weight: 50}"))


def test_stages_that_are_equal_to_the_last_digit_are_told_by_name() -> None:
    copy = "  other: {stage: train, model: {name: cnn, widths: [4, 4]}, epochs: 1, replicas: 2SEED}\n"

    def told(seed: str) -> list[str]:
        text = PLAN.replace("METHODS", "{method: hinton}") + copy.replace("SEED", seed)
        return list(shared_folders(order_stages(Plan.model_validate(parse_source(text, "").values))))

    (line,) = told("")
    assert line.startswith(
        "stages `teacher` and `other.0` have equal settings and share one result; give one"
    )
    assert told(", seed: 1") == []


@pytest.mark.parametrize("plan", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_plan_needs_advice(plan: Path) -> None:
    assert not lines_about(plan.read_text())
