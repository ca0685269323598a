"""A teacher that somebody trained before is taken as it is, and judged, taught from and stored like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raydistill.errors import PlanError
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.prediction import evaluate_model, load_model
from raydistill.training.trust import Trust

MLP = {"name": "mlp", "widths": [8]}
STILL = {"name": "sgd", "learning_rate": 1e-30, "momentum": 0.0}
OWN = """
from torch import nn
def build(num_classes{parameter}):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))
    {line}
    return model
"""


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    """Weights and running statistics of a network that was trained elsewhere."""
    torch.manual_seed(3)
    model = network()
    model(torch.randn(50, 1, 8, 8))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def tensors(file: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return loaded


@pytest.fixture
def own(users_models: Callable[[str], str]) -> dict[str, Any]:
    return {"name": f"{users_models(OWN.format(parameter='', line=''))}:build"}


def stored(stages: Any, name: str) -> dict[str, Tensor]:
    return load_file(stages.folder(name).path / "model.safetensors")


def test_weights_and_statistics_are_those_of_the_file(stages: Any, own: Any, brought: Path) -> None:
    stages.run({"teacher": {"stage": "pretrained", "model": own, "weights": str(brought)}})
    kept, expected = stored(stages, "teacher"), tensors(brought)
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[key], expected[key]) for key in expected)
    assert stages.record("teacher").parameters == sum(p.numel() for p in network().parameters())


def test_it_is_judged_on_both_splits(stages: Any, own: Any, brought: Path) -> None:
    stages.run({"teacher": {"stage": "pretrained", "model": own, "weights": str(brought)}})
    data = stages.plan.task.load()
    model = network().eval()
    model.load_state_dict(tensors(brought))
    for name, split in (("validation", data.validation), ("test", data.test)):
        logits = model(data.normalisation(split.inputs))
        right = (logits.argmax(1) == split.labels).float().mean().item()
        assert stages.record("teacher").metrics[f"{name}/accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("mode", ["stored", "live"])
def test_a_student_learns_from_it(mode: str, stages: Any, own: Any, brought: Path, student: Any) -> None:
    teacher = {"stage": "pretrained", "model": own, "weights": str(brought)}
    stages.run({"teacher": teacher, "student": student | {"teachers": ["teacher"], "mode": mode}})
    assert all(torch.equal(stored(stages, "teacher")[key], value) for key, value in tensors(brought).items())
    assert stages.record("student").metrics["test/samples"] > 0


def fingerprint(stages: Any, **stage: Any) -> str:
    return str(stages.write({"teacher": {"stage": "pretrained", **stage}}).nodes["teacher"].fingerprint)


def test_its_identity_is_the_files_content_wherever_it_is_named(
    stages: Any, own: Any, brought: Path, tmp_path: Path
) -> None:
    before = fingerprint(stages, model=own, weights=str(brought))
    assert fingerprint(stages, model=own | {"weights": str(brought)}) == before
    moved = brought.rename(tmp_path / "moved.pth")
    assert fingerprint(stages, model=own, weights=str(moved)) == before
    torch.save({**tensors(moved), "0.bias": torch.ones(8)}, moved)
    assert fingerprint(stages, model=own, weights=str(moved)) != before


def test_other_shards_behind_the_same_index_are_another_teacher(stages: Any, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors"}}')
    (tmp_path / "one.safetensors").write_bytes(b"1")
    before = fingerprint(stages, model=MLP, weights=str(index))
    (tmp_path / "one.safetensors").write_bytes(b"2")
    assert fingerprint(stages, model=MLP, weights=str(index)) != before


def test_a_finished_one_needs_its_file_no_more(stages: Any, own: Any, brought: Path) -> None:
    stages.run({"teacher": {"stage": "pretrained", "model": own, "weights": str(brought)}})
    expected = tensors(brought)
    brought.unlink()
    trust = Trust(root=stages.root)
    folder = stages.folder("teacher").path
    plain = load_model(folder, trust).plain.state_dict()
    assert all(torch.equal(plain[key], expected[key]) for key in expected)
    judged = evaluate_model(folder, "test", trust)
    assert judged["accuracy"] == stages.record("teacher").metrics["test/accuracy"]


def test_a_received_folder_of_one_calls_nobodys_function(stages: Any, own: Any, brought: Path) -> None:
    stages.run({"teacher": {"stage": "pretrained", "model": own, "weights": str(brought)}})
    with pytest.raises(PlanError, match="builds only networks of ours"):
        load_model(stages.folder("teacher").path, Trust())


def test_a_function_that_takes_weights_reads_them_itself(
    stages: Any, users_models: Callable[[str], str], brought: Path
) -> None:
    line = "model.load_state_dict(__import__('torch').load(weights, weights_only=True)['state_dict'])"
    name = users_models(OWN.format(parameter=", weights", line=line))
    stages.run({"t": {"stage": "pretrained", "model": {"name": f"{name}:build"}, "weights": str(brought)}})
    assert all(torch.equal(stored(stages, "t")[key], value) for key, value in tensors(brought).items())
    assert stages.logits("t").shape == (150, 3)


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_the_same_weights_begin_a_training(
    kind: str, stages: Any, own: Any, brought: Path, teacher: Any, student: Any
) -> None:
    common = {"weights": str(brought), "epochs": 1, "optimizer": STILL}
    plans: dict[str, dict[str, Any]] = {
        "train": {"begun": teacher | {"model": own} | common},
        "distill": {"other": teacher, "begun": student | {"student": own, "teachers": ["other"]} | common},
    }
    stages.run(plans[kind])
    kept, expected = stored(stages, "begun"), tensors(brought)
    learned = [key for key, value in network().named_parameters() if value.requires_grad]
    for key in learned:
        torch.testing.assert_close(kept[key], expected[key], rtol=0, atol=1e-25)


def test_a_teacher_at_the_level_of_chance_is_called_out(stages: Any, own: Any) -> None:
    stages.file.unlink()
    draw = np.random.default_rng(0)
    np.savez(stages.file, inputs=draw.normal(size=(2000, 1, 8, 8)), labels=np.arange(2000) % 3)
    stages.run({"teacher": {"stage": "pretrained", "model": own}})
    assert any("at the level of chance" in warning for warning in stages.record("teacher").warnings)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"model": MLP | {"weights": "w.pth"}, "weights": "w.pth"}, "stands at the stage and in its `model`"),
        ({"model": MLP, "ignore": ["fc.*"]}, "`ignore` is about a file of `weights`"),
        ({"model": MLP, "weights": "absent.pth"}, "the file `absent.pth` does not exist"),
        ({"model": MLP, "weights": "."}, "`.` is a folder; name the file in it"),
        ({"stage": "train", "epochs": 1, "model": MLP, "weights": "w.pth", "initial": "other"}, "keep one"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(stage: Any, words: str, stages: Any, teacher: Any) -> None:
    task = {"name": "tensors", "file": str(stages.file)}
    chosen = {"stage": "pretrained", **stage}
    with pytest.raises((ValueError, PlanError)) as raised:
        order_stages(
            Plan.model_validate({"name": "p", "task": task, "stages": {"other": teacher, "t": chosen}})
        )
    assert words in str(raised.value)
