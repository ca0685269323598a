"""Teachers under autocast: stored and live alike, with a figure of what that costs."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from raydistill.errors import PlanError
from raydistill.models.taps import Output, Tapped
from raydistill.plan.load import check_plan
from raydistill.plan.stage import stage_of
from raydistill.plan.written import parse_source
from raydistill.stages.verify_targets import verify_targets
from raydistill.targets.reader import open_targets
from raydistill.targets.store import load_manifest
from raydistill.training.parity import divergences, forward_pass, parity

HALVES = ("bfloat16", "float16")
KEY = "targets/kl_to_float32"


def predicting(teacher: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"teacher": teacher, "targets": {"stage": "predict_targets", "teacher": "teacher"} | changes}


def test_the_divergence_is_the_sum_by_hand_and_nothing_between_equals() -> None:
    exact, rounded = (
        torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]]),
        torch.tensor([[0.0, 1.5, 3.0], [5, 5, 5]]),
    )
    for temperature in (1.0, 4.0):
        p = [math.exp(x / temperature) for x in (0.0, 1.0, 3.0)]
        q = [math.exp(x / temperature) for x in (0.0, 1.5, 3.0)]
        by_hand = sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        found = divergences(rounded, exact, temperature)
        assert found.tolist() == pytest.approx([by_hand, 0.0], abs=1e-12)
        figures = parity(rounded, exact)
        assert figures[f"{KEY}/largest_t{temperature:.0f}"] == pytest.approx(by_hand)
        assert figures[f"{KEY}/mean_t{temperature:.0f}"] == pytest.approx(by_hand / 2)


@pytest.mark.parametrize("precision", HALVES)
def test_a_linear_map_rounds_its_inputs_weights_and_sums_as_the_type_does(precision: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    inputs, dtype = torch.randn(32, 64), getattr(torch, precision)
    with torch.no_grad():
        found = forward_pass(Tapped(model, ()), "cpu", precision)(inputs).logits
        rounded = [tensor.to(dtype).double() for tensor in (inputs, model.weight, model.bias)]
        expected = rounded[0] @ rounded[1].T + rounded[2]
    assert found.dtype == torch.float32
    spacing = torch.finfo(dtype).eps * expected.abs().clamp(min=1)
    assert ((found.double() - expected).abs() <= spacing).all()
    assert torch.equal(found, found.to(dtype).float()), "it ran in that type"


@pytest.mark.parametrize("precision", HALVES)
def test_stored_answers_are_those_of_that_precision_and_the_store_and_metrics_say_so(
    stages: Any, teacher: dict[str, Any], precision: Any
) -> None:
    stages.run(predicting(teacher, precision=precision))
    folder = stages.folder("targets").path
    assert load_manifest(folder).precision == precision
    targets = open_targets(folder, root=stages.root, expect=None)
    task = stages.plan.task.load()
    rows = torch.arange(len(targets.ids))
    order = {int(sample): row for row, sample in enumerate(task.train.ids)}
    inputs = task.train.inputs[[order[int(sample)] for sample in targets.ids]]
    model = stages.model("teacher")
    with torch.no_grad(), torch.autocast("cpu", getattr(torch, precision)):
        expected = model.model(model.prepared(inputs)).float()
    found = targets.read(rows).logits[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2**-7)
    metrics = stages.record("targets").metrics
    assert 0 < metrics[f"{KEY}/mean_t1"] < metrics[f"{KEY}/largest_t1"] < 1e-2
    exact = model.logits(inputs)
    assert metrics[f"{KEY}/mean_t1"] == pytest.approx(divergences(expected, exact, 1.0).mean().item())
    assert all(result.passed for result in verify_targets(folder, stages.root, rows=50).values())
    assert not stages.record("targets").warnings


def test_a_store_of_float32_has_no_such_figure_and_its_fingerprint_says_nothing_of_it(
    stages: Any, teacher: dict[str, Any]
) -> None:
    plain = stages.write(predicting(teacher)).nodes["targets"]
    said = stages.write(predicting(teacher, precision="float32", compile=False)).nodes["targets"]
    half = stages.write(predicting(teacher, precision="bfloat16")).nodes["targets"]
    assert plain.fingerprint == said.fingerprint != half.fingerprint
    assert not {"precision", "compile", "channels_last"} & set(plain.identity["config"])
    stages.run(predicting(teacher))
    assert not [name for name in stages.record("targets").metrics if name.startswith(KEY)]


def test_verify_still_finds_another_teacher(stages: Any, teacher: dict[str, Any]) -> None:
    stages.run(predicting(teacher, precision="bfloat16"))
    folder = stages.folder("targets").path
    model = stages.model("teacher").model
    with torch.no_grad():
        next(iter(model.parameters())).add_(0.3 * torch.randn(16, 64))
    with pytest.MonkeyPatch.context() as patch:
        other = stages.model("teacher")
        object.__setattr__(other, "model", model)
        patch.setattr("raydistill.training.model_files.load", lambda *arguments: other)
        assert not all(result.passed for result in verify_targets(folder, stages.root, rows=50).values())


# A level of 3,000, at which bfloat16 knows multiples of 16 alone.
HIGH = """
import torch
from torch import nn

class High(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, inputs):
        return self.linear(inputs.flatten(1)) + 3000

def build(num_classes):
    return High(num_classes)
"""


def test_a_teacher_that_rounding_changes_is_warned_of(
    stages: Any, teacher: dict[str, Any], users_models: Any
) -> None:
    high = teacher | {"model": {"name": f"{users_models(HIGH)}:build"}}
    stages.run(predicting(high, precision="bfloat16"))
    [warning] = stages.record("targets").warnings
    assert "`precision: bfloat16`" in warning
    assert "write `float32`" in warning


def test_live_and_stored_teachers_of_a_student_run_alike(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    hears = student | {"teachers": ["teacher"], "teacher_precision": "bfloat16"}
    written = {
        "teacher": teacher,
        "stored": hears,
        "live": hears | {"mode": "live"},
        "exact": hears | {"mode": "live", "teacher_precision": "float32"},
    }
    stages.run(written)
    assert load_manifest(stages.folder("teacher.targets").path).precision == "bfloat16"

    def losses(name: str) -> torch.Tensor:
        return torch.tensor(
            [line["train/loss/soft"] for line in stages.metrics(name) if "train/loss/soft" in line]
        )

    rounded, exact = losses("live"), losses("exact")
    assert not torch.equal(rounded, exact)
    # What is stored is rounded to float16 besides, 16 times more finely than in bfloat16.
    torch.testing.assert_close(losses("stored"), rounded, rtol=2e-3, atol=1e-4)


def test_targets_resources_are_those_of_the_stages_that_the_graph_inserts(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    hears = student | {"teachers": ["teacher"]}
    plain = stages.write({"teacher": teacher, "student": hears})
    many = stages.write({"teacher": teacher, "student": hears | {"targets_resources": {"workers": 16}}})
    assert many.nodes["teacher.targets"].config.resources.workers == 16
    assert plain.nodes["teacher.targets"].config.resources.workers == 1
    for name, node in plain.nodes.items():
        assert many.nodes[name].fingerprint == node.fingerprint
    for node in many.nodes.values():  # as a worker reads what it is sent
        assert stage_of(node.config.model_dump(mode="json")) == node.config


@pytest.mark.parametrize("line", ["teacher_precision: bfloat16", "targets_resources: {workers: 2}"])
def test_what_is_said_of_targets_that_are_made_elsewhere_is_refused(line: str) -> None:
    text = f"""\
name: made
task: {{name: mnist}}
stages:
  teacher: {{stage: train, model: {{name: mlp}}, epochs: 1}}
  stored: {{stage: predict_targets, teacher: teacher}}
  student:
    stage: distill
    student: {{name: mlp}}
    targets: stored
    epochs: 1
    {line}
"""
    with pytest.raises(
        PlanError, match=rf"plan.yaml:11: stages.student.{line.split(':')[0]}: `targets` are made"
    ):
        check_plan(parse_source(text, "plan.yaml"))


@pytest.mark.slow
def test_compiled_and_with_channels_last_the_answers_are_the_same_but_for_rounding(
    stages: Any, teacher: dict[str, Any]
) -> None:
    network = teacher | {"model": {"name": "cnn", "widths": [4], "batch_norm": True, "hidden": [8]}}
    plain = stages.run(predicting(network))
    rows = torch.arange(100)
    expected = open_targets(plain.folder("targets").path, root=stages.root, expect=None).read(rows).logits
    for option in ("channels_last", "compile"):
        stages.run(predicting(network, batch_size=60, **{option: True}))
        found = open_targets(stages.folder("targets").path, root=stages.root, expect=None).read(rows).logits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2**-7)


def test_features_come_back_as_float32() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    output: Output = forward_pass(Tapped(model, ("0",)), "cpu", "bfloat16")(torch.randn(2, 4))
    assert output.features["0"].dtype == torch.float32
