"""Int8 models of finished ones: judged as they run, used like any other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from raydistill import lookup
from raydistill.cli import main
from raydistill.training.fake_quantization import rounded_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CNN = {"name": "cnn", "widths": [8, 8], "batch_norm": True}
INT8 = {"stage": "quantize", "model": "teacher"}


@pytest.fixture
def plan(teacher: dict[str, Any]) -> dict[str, Any]:
    return {"teacher": teacher | {"model": CNN, "epochs": 8}}


def program_of(stages: Any, name: str) -> Path:
    return Path(stages.folder(name).path / "program" / "model.onnx")


def test_an_int8_model_answers_as_the_float_one_in_a_third_of_its_bytes(
    stages: Any, plan: dict[str, Any]
) -> None:
    wide = {"name": "cnn", "widths": [32, 32], "batch_norm": True}
    plan["teacher"]["model"] = wide
    stages.run(plan | {"int8": INT8})
    metrics = stages.record("int8").metrics
    assert metrics["size/int8_bytes"] < metrics["size/float32_bytes"] / 2
    assert metrics["int8/agreement_with_float32"] > 0.95
    whole = stages.record("teacher").metrics
    assert metrics["test/accuracy"] == pytest.approx(whole["test/accuracy"], abs=0.05)
    gap = (stages.logits("int8") - stages.logits("teacher")).abs().max()
    assert 0 < gap < 0.1 * stages.logits("teacher").abs().max()


def test_weights_are_integers_a_scale_for_each_channel_and_within_seven_bits(
    stages: Any, plan: dict[str, Any]
) -> None:
    stages.run(
        plan | {"int8": INT8, "eight": INT8 | {"seven_bits": False}, "one": INT8 | {"per_channel": False}}
    )

    def weights(name: str) -> dict[str, np.ndarray[Any, Any]]:
        graph = onnx.load(program_of(stages, name)).graph
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        return {key: value for key, value in tensors.items() if value.dtype == np.int8 and value.ndim > 1}

    def scales(name: str) -> list[int]:
        graph = onnx.load(program_of(stages, name)).graph
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        made = [
            node
            for node in graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in weights(name)
        ]
        return sorted(tensors[node.input[1]].size for node in made)

    assert len(weights("int8")) == 3  # two convolutions, into which their norms went, and the classifier
    assert max(np.abs(value).max() for value in weights("int8").values()) <= 64
    assert max(np.abs(value).max() for value in weights("eight").values()) == 127
    assert scales("int8") == [3, 8, 8]
    assert scales("one") == [1, 1, 1]


def test_what_is_judged_is_the_program_and_it_teaches_like_any_other(
    stages: Any, plan: dict[str, Any], student: dict[str, Any]
) -> None:
    stages.run(plan | {"int8": INT8, "student": student | {"teachers": ["int8"]}})
    trained, inputs = stages.model("teacher"), torch.rand(7, 1, 8, 8)
    session = onnxruntime.InferenceSession(str(program_of(stages, "int8")))
    (expected,) = session.run(["logits"], {"inputs": trained.prepared(inputs).numpy()})
    torch.testing.assert_close(stages.model("int8").logits(inputs), torch.from_numpy(expected))


def test_the_same_samples_make_the_same_model_and_others_another(stages: Any, plan: dict[str, Any]) -> None:
    few = INT8 | {"samples": 5}
    stages.run(plan | {"one": few, "other": few | {"seed": 1}})
    again = stages.elsewhere("again").run(plan | {"one": few, "other": few | {"seed": 1}})
    one, other = (program_of(stages, name).read_bytes() for name in ("one", "other"))
    assert program_of(again, "one").read_bytes() == one
    assert one != other


def test_each_replica_has_its_own(stages: Any, plan: dict[str, Any]) -> None:
    plan["teacher"] |= {"replicas": 2, "epochs": 1}
    assert {"int8.0", "int8.1"} <= set(stages.run(plan | {"int8": INT8}).graph.nodes)
    assert stages.graph.nodes["int8.1"].reads == ("teacher.1",)


def test_a_program_is_refused(stages: Any, plan: dict[str, Any]) -> None:
    stages.run(plan | {"int8": INT8})
    stages.write(plan | {"int8": INT8, "twice": {"stage": "quantize", "model": "int8"}})
    outcome = stages.attempt("twice")
    assert outcome.status == "failed"
    assert "`int8` is a program already; name the network that it was made from" in outcome.error


def test_a_missing_library_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(lookup, "find_spec", lambda name: None)
    file = tmp_path / "plan.yaml"
    file.write_text(
        "name: p\ntask: {name: mnist}\nstages:\n  one: {stage: train, model: mlp, epochs: 1}\n"
        "  int8: {stage: quantize, model: one}\n"
    )
    assert CliRunner().invoke(main, ["run", str(file), "--dry-run", "--runs", str(tmp_path)]).exit_code == 0
    assert "ONNX is written with `onnx` and `onnxscript` and `onnxruntime`; install them" in caplog.text


def test_a_student_that_was_rounded_in_training_is_better_in_few_bits(
    stages: Any, plan: dict[str, Any], student: dict[str, Any]
) -> None:
    """Both on the grid of 2 bits, where weights are -1, 0 or 1 times a number."""
    taught = student | {"student": CNN, "teachers": ["teacher"], "epochs": 20}
    fake = {"fake_quantization": {"weight_bits": 2, "activation_bits": None}}
    stages.run(plan | {"plain": taught, "rounded": taught | fake})
    loss = {}
    for name in ("plain", "rounded"):
        trained = stages.model(name)
        with torch.no_grad():
            for layer in trained.model.modules():
                if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                    layer.weight.copy_(rounded_weights(layer.weight, 2))
        data = stages.plan.task.load().test
        loss[name] = torch.nn.functional.cross_entropy(trained.logits(data.inputs), data.labels).item()
    assert loss["rounded"] < loss["plain"] / 2


def test_stopping_and_resuming_a_rounded_training_equals_not_stopping(
    stages: Any, plan: dict[str, Any], student: dict[str, Any]
) -> None:
    fake = {"fake_quantization": {"from_epoch": 1}, "student": CNN, "teachers": ["teacher"], "epochs": 3}
    plan["student"] = (
        student | fake | {"mode": "live", "methods": [{"method": "hinton"}, {"method": "relational"}]}
    )
    whole = stages.run(plan).model("student").model.state_dict()
    other = stages.elsewhere("again")
    other.write(plan)
    assert other.attempt("teacher").status == "done"
    assert other.attempt("student", iter([False] * 4 + [True]).__next__).status == "stopped"
    assert other.attempt("student").status == "done"
    resumed = other.model("student").model.state_dict()
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    plan["student"].pop("fake_quantization")
    plain = stages.elsewhere("plain").run(plan).model("student").model.state_dict()
    assert any(not torch.equal(plain[key], value) for key, value in whole.items())
