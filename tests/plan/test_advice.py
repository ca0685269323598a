"""Advice about plans that can be run but hardly mean what they say."""

from pathlib import Path

import pytest

from raydistill.plan.advice import advice
from raydistill.plan.load import parse_source
from raydistill.plan.schema import Plan

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
    return list(advice(Plan.model_validate(source.values), source.error))  # the data need not be there


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


@pytest.mark.parametrize("plan", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_plan_needs_advice(plan: Path) -> None:
    assert not lines_about(plan.read_text())
