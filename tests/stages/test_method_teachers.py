"""Methods that each hear their own of several live teachers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor

from raydistill.cli import main
from raydistill.targets.mixing import TeacherTargets

LARGE = {"name": "cnn", "widths": [6, 6], "batch_norm": True}
SMALL = {"name": "cnn", "widths": [4, 6], "batch_norm": True}
HINTON = {"method": "hinton"}
RELATIONAL = {"method": "relational"}


@pytest.fixture
def plan(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """Two teachers, and students of the first alone, of the second alone."""
    taught = student | {"student": SMALL, "mode": "live"}
    return {
        "cnn": teacher | {"model": LARGE},
        "mlp": teacher | {"model": {"name": "mlp", "widths": [8]}},
        "of-cnn": taught | {"teachers": ["cnn"], "methods": [HINTON, RELATIONAL]},
        "of-mlp": taught | {"teachers": ["mlp"], "methods": [HINTON]},
    }


def beside(plan: dict[str, Any], *methods: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A student of both teachers."""
    return plan["of-cnn"] | {"teachers": ["mlp", "cnn"], "methods": list(methods)} | changes


def weights(stages: Any, name: str) -> dict[str, Tensor]:
    return dict(stages.model(name).model.state_dict())


def test_a_method_hears_the_teachers_that_it_names_as_if_there_were_no_others(
    stages: Any, plan: dict[str, Any]
) -> None:
    unheard = {"method": "triplet_logits", "weight": 0}
    plan["heard-cnn"] = beside(
        plan, {**HINTON, "teachers": ["cnn"]}, {**RELATIONAL, "teachers": ["cnn"]}, unheard
    )
    plan["heard-mlp"] = beside(plan, {**HINTON, "teachers": ["mlp"]}, unheard)
    stages.run(plan)
    for both, alone in (("heard-cnn", "of-cnn"), ("heard-mlp", "of-mlp")):
        expected = weights(stages, alone)
        assert all(torch.equal(value, expected[key]) for key, value in weights(stages, both).items())


def test_features_of_one_and_soft_targets_of_all(stages: Any, plan: dict[str, Any]) -> None:
    """The one has a feature, `stage2`, that the other has not."""
    hints = {"method": "hints", "student_feature": "stage2", "teacher_feature": "stage2", "reduction": "mean"}
    plan["student"] = beside(plan, HINTON, {**hints, "teachers": ["cnn"]})
    stages.run(plan)
    assert {"train/loss/hinton/soft", "train/loss/hints/hint"} <= set(stages.metrics("student")[-1])


def test_the_weights_of_some_sum_to_one_again_and_are_even_where_none_is_left() -> None:
    logits = torch.arange(12.0).view(2, 3, 2)
    said = TeacherTargets(logits, torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]]), {}, ({}, {}, {})).of(
        [2, 0]
    )
    torch.testing.assert_close(said.weights, torch.tensor([[0.6, 0.4], [0.5, 0.5]]))
    assert torch.equal(said.logits, logits[:, [2, 0]])


PLAN = """\
name: several
task: {name: mnist}
stages:
  cnn: {stage: train, model: {name: cnn, widths: [8, 8]}, epochs: 1}
  mlp: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
  student:
    stage: distill
    student: {name: cnn, widths: [4, 8]}
    epochs: 1
"""
REFUSED = {
    "a stranger": (
        "mode: live, teachers: [cnn], methods: [{method: hinton, teachers: [mlp]}]",
        "methods.0.teachers: `mlp` is not among the stage's `teachers`: cnn",
    ),
    "no stage": (
        "mode: live, teachers: [cnn], methods: [{method: hinton, teachers: [mpl]}]",
        "methods.0.teachers.0: stage `student` reads `mpl`, which the plan does not define; did you mean `mlp`?",
    ),
    "nobody hears one": (
        "mode: live, teachers: [cnn, mlp], methods: [{method: hinton, teachers: [cnn]}]",
        "teachers: no method hears `mlp`; leave it out, or name it in the `teachers` of a method",
    ),
    "stored targets": (
        "teachers: [cnn, mlp], methods: [{method: hinton, teachers: [cnn]}, {method: wsld}]",
        "methods.0.teachers: stored targets are those of all teachers together; set `mode: live`",
    ),
    "a geometric mean": (
        "mode: live, combine: {rule: geometric}, teachers: [cnn, mlp],"
        " methods: [{method: hinton, teachers: [cnn]}, {method: wsld}]",
        "methods.0.teachers: a geometric mean is that of all teachers",
    ),
    "features of two": (
        "mode: live, teachers: [cnn, mlp], methods: [{method: relational, teachers: [cnn, mlp]}]",
        "`relational` looks at the features of one teacher; name one",
    ),
    "no such feature": (
        "mode: live, teachers: [mlp, cnn],"
        " methods: [{method: hinton}, {method: hints, teacher_feature: stage9, teachers: [cnn]}]",
        "methods.1: ",
    ),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_heard_is_refused_in_one_line(tmp_path: Path, options: str, words: str) -> None:
    file = tmp_path / "plan.yaml"
    indented = "".join(
        f"    {line}\n" for line in yaml.safe_dump(yaml.safe_load("{" + options + "}")).splitlines()
    )
    file.write_text(PLAN + indented)
    result = CliRunner().invoke(main, ["run", str(file), "--dry-run"])
    assert result.exit_code == 2, result.output
    assert len(result.output.strip().splitlines()) == 1
    assert words in result.output
