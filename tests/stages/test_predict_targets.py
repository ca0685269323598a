"""`predict_targets`: every row is what the teacher says about that view; a broken one is named."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.kinds.augmentations import FlipConfig, ShiftConfig
from raydistill.stages import predict_targets
from raydistill.stages.verify_targets import verify_targets
from raydistill.targets.reader import Targets, open_targets
from raydistill.targets.store import TargetWriter
from raydistill.training.augment import augment

VIEWS = {"augment": [{"name": "shift", "pixels": 1}, {"name": "flip"}], "views": 3, "view_seed": 8}

# Says what a linear map would, but counts its calls and finds one sample's picture too bright.
FRAGILE = """
import torch
from torch import nn

calls = []

class Fragile(nn.Module):
    def __init__(self, num_classes, value):
        super().__init__()
        self.linear, self.value = nn.Linear(64, num_classes), value

    def forward(self, inputs):
        logits = self.linear(inputs.flatten(1))
        if self.training:
            return logits
        calls.append(len(inputs))
        is_too_bright = inputs.flatten(1).amax(dim=1) > 20
        return torch.where(is_too_bright[:, None], self.value, logits)

def build(num_classes, value=float("nan")):
    return Fragile(num_classes, float(value))
"""


def open_store(stages: Any, name: str = "targets") -> Targets:
    return open_targets(stages.folder(name).path, root=stages.root, expect=None)


def inputs_of(stages: Any, ids: Tensor) -> Tensor:
    arrays = np.load(stages.file)
    return torch.from_numpy(np.stack([arrays["inputs"][arrays["ids"] == i][0] for i in ids.tolist()]))


def predicting(teacher: dict[str, Any], **changes: Any) -> dict[str, Any]:
    targets = {"stage": "predict_targets", "teacher": "teacher", "batch_size": 11}
    return {"teacher": teacher, "targets": targets | changes}


def test_each_row_is_what_the_teacher_says_about_the_clean_input(
    stages: Any, teacher: dict[str, Any]
) -> None:
    stages.run(predicting(teacher))
    targets = open_store(stages)
    expected = stages.model("teacher").logits(inputs_of(stages, targets.ids))
    found = targets.read(torch.arange(len(targets.ids))).logits[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2**-7)
    metrics = stages.record("targets").metrics
    assert metrics["targets/rows"] == len(targets.ids)
    accuracy = stages.record("teacher").metrics["validation/accuracy"]
    assert metrics["teacher/validation/accuracy"] == accuracy


def test_each_view_is_what_the_teacher_says_about_those_pixels(stages: Any, teacher: dict[str, Any]) -> None:
    stages.run(predicting(teacher, **VIEWS))
    targets = open_store(stages)
    inputs, steps = inputs_of(stages, targets.ids), [ShiftConfig(pixels=1), FlipConfig()]
    for view in range(3):
        expected = stages.model("teacher").logits(augment(inputs, targets.ids, steps, 8, view))
        found = targets.read(torch.arange(len(targets.ids)), view).logits[:, 0]
        torch.testing.assert_close(found, expected, rtol=0, atol=2**-7)


def test_errors_are_counted_over_all_views(stages: Any, teacher: dict[str, Any]) -> None:
    stages.run(predicting(teacher | {"epochs": 1}, **VIEWS))
    targets, arrays = open_store(stages), np.load(stages.file)
    labels = dict(zip(arrays["ids"].tolist(), arrays["labels"].tolist(), strict=True))
    rows, wrong = torch.arange(len(targets.ids)), 0
    for view in range(3):
        for sample, row in zip(targets.ids, targets.read(rows, view).logits[:, 0], strict=True):
            wrong += int(row.argmax()) != labels[int(sample)]
    assert wrong > 0
    assert stages.record("targets").metrics["targets/errors"] == wrong


@pytest.mark.parametrize("asked_at", [1, 4, 9, 20, 30])
def test_a_stopped_prediction_goes_on_at_its_last_shard_and_writes_the_same_files(
    stages: Any,
    users_models: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    asked_at: int,
    teacher: dict[str, Any],
) -> None:
    monkeypatch.setattr(predict_targets, "TargetWriter", partial(TargetWriter, rows_per_shard=40))
    module = users_models(FRAGILE)
    plan = predicting(teacher | {"model": {"name": f"{module}:build"}}, **VIEWS)
    whole = stages.elsewhere("undisturbed").run(plan)
    stages.write(plan)
    assert stages.attempt("teacher").status == "done"
    asked = iter(range(1, 1000))
    assert stages.attempt("targets", should_stop=lambda: next(asked) == asked_at).status == "stopped"
    calls = sys.modules[module].calls
    calls.clear()
    assert stages.attempt("targets").status == "done"
    assert stages.record("targets").payload == whole.record("targets").payload
    assert stages.record("targets").metrics == whole.record("targets").metrics
    kept = 11 * (asked_at - 1) // 40 * 40
    rows = int(stages.record("targets").metrics["targets/rows"])
    assert sum(calls) <= rows - kept + 10  # at most a batch that begins before the first missing row


@pytest.mark.parametrize(("value", "reason"), [("nan", "not finite"), ("70000", "does not fit into float16")])
def test_a_broken_teacher_fails_with_its_name_the_sample_and_the_view(
    stages: Any, users_models: Callable[[str], str], teacher: dict[str, Any], value: str, reason: str
) -> None:
    name = f"{users_models(FRAGILE)}:build"
    broken = teacher | {"model": {"name": name, "value": value}, "epochs": 1}
    inputs, ids = spoil_one_training_sample(stages)
    seed = next(seed for seed in range(99) if shows_corner(inputs, ids, seed) == [False, True])
    steps = [{"name": "shift", "pixels": 1}]
    stages.write(predicting(broken, augment=steps, views=2, view_seed=seed))
    assert stages.attempt("teacher").status == "done"
    assert stages.attempt("targets").status == "failed"
    record = stages.record("targets")
    fingerprint = stages.record("teacher").fingerprint
    assert f"teacher `{fingerprint}` gave the logit {value}" in (record.error or "")
    assert f"for sample {SPOILT} in view 1: " in (record.error or "")
    assert reason in (record.error or "")
    assert not (stages.folder("targets").path / "manifest.json").exists()


SPOILT = 123_456


def spoil_one_training_sample(stages: Any) -> tuple[Tensor, Tensor]:
    """Give one picture a corner that is much too bright; the picture and its id."""
    arrays = dict(np.load(stages.file))
    split = np.array(["train"] * 100 + ["validation"] * 20 + ["test"] * 30)
    arrays["inputs"][50, 0, 0, 0] = 100.0
    arrays["ids"][50] = SPOILT
    np.savez(stages.file, **arrays, split=split)
    return torch.from_numpy(arrays["inputs"][50:51]), torch.tensor([SPOILT])


def shows_corner(inputs: Tensor, ids: Tensor, seed: int) -> list[bool]:
    """Whether the bright corner is still there in views 0 and 1."""
    return [bool((augment(inputs, ids, [ShiftConfig(pixels=1)], seed, view) > 50).any()) for view in (0, 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path, stages: Any) -> None:
    rows, classes = 150_000, 200  # 57 MiB of logits, in shards of 3 MiB
    file = tmp_path / "many.npz"
    labels = np.arange(rows) % classes
    split = (np.arange(rows) % 1000 == 0) * 2
    np.savez(file, inputs=labels[:, None].astype(np.float32) / classes, labels=labels, split=split)
    task = {"validation_fraction": 0.001}
    many = type(stages)(stages.root, file, task)
    linear = {"name": "mlp", "widths": []}
    few = {"stage": "train", "epochs": 1, "batch_size": 500, "model": linear, "transfer": {"fraction": 0.01}}
    many.write({"teacher": few, "targets": {"stage": "predict_targets", "teacher": "teacher"}})
    assert many.attempt("teacher").status == "done"
    seen: list[int] = []

    def watch() -> bool:
        seen.append(private_memory())
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_targets, "TargetWriter", partial(TargetWriter, rows_per_shard=8192))
        assert many.attempt("targets", should_stop=watch).status == "done"
    assert len(seen) > 250
    assert max(seen[20:]) - seen[20] < 10 * 2**20
    assert sum(path.stat().st_size for path in many.folder("targets").path.glob("*.arrow")) > 50 * 2**20


def private_memory() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("top_k", [1, 2])
def test_each_top_k_row_keeps_what_the_teacher_finds_most_probable(
    stages: Any, teacher: dict[str, Any], top_k: int
) -> None:
    stages.run(predicting(teacher, top_k=top_k, **VIEWS))
    targets = open_store(stages)
    inputs, steps = inputs_of(stages, targets.ids), [ShiftConfig(pixels=1), FlipConfig()]
    for view in range(3):
        logits = stages.model("teacher").logits(augment(inputs, targets.ids, steps, 8, view))
        for temperature in (1.0, 4.0):
            expected = torch.softmax(logits / temperature, dim=1)
            kept = logits.argsort(dim=1, descending=True)[:, :top_k]
            read = targets.read(torch.arange(len(targets.ids)), view, temperature=temperature)
            found = torch.softmax(read.logits[:, 0] / temperature, dim=1)
            torch.testing.assert_close(found.gather(1, kept), expected.gather(1, kept), rtol=5e-3, atol=1e-5)


def test_a_top_k_store_counts_the_errors_of_the_dense_one_and_verifies(
    stages: Any, teacher: dict[str, Any]
) -> None:
    plan = predicting(teacher | {"epochs": 1}, **VIEWS)
    plan["some"] = plan["targets"] | {"top_k": 2}
    stages.run(plan)
    dense, some = (stages.record(name).metrics for name in ("targets", "some"))
    assert dense["targets/errors"] > 0
    assert some == dense
    (result,) = verify_targets(stages.folder("some").path, stages.root, rows=40).values()
    assert result.passed


def test_a_student_of_every_class_kept_is_that_of_dense_targets(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    """And one of the two most probable of three classes, whose tail is one class, differs by rounding as well."""
    plan = predicting(teacher)
    method = {"method": "hinton", "temperature": 4.0}
    for name, top_k in (("all", 3), ("most", 2)):
        plan[name] = plan["targets"] | {"top_k": top_k}
    for name in ("targets", "all", "most"):
        plan[f"from_{name}"] = student | {"targets": name, "method": method}
    stages.run(plan)
    dense = stages.logits("from_targets")
    assert dense.std() > 0.1
    for name in ("from_all", "from_most"):
        difference = (stages.logits(name) - dense).abs().max()
        assert difference < 1e-3 * dense.abs().max()


# In eval mode the coarse one gives its best class what it has at T = 4, and the others equal parts of the rest.
COARSE = """
import torch
from torch import nn

class Coarse(nn.Module):
    def __init__(self, num_classes, coarse):
        super().__init__()
        self.linear, self.coarse = nn.Linear(64, num_classes), coarse

    def forward(self, inputs):
        logits = self.linear(inputs.flatten(1))
        if self.training or not self.coarse:
            return logits
        best, place = torch.softmax(logits / 4, dim=1).max(dim=1, keepdim=True)
        rest = (1 - best) / (logits.shape[1] - 1)
        return 4 * rest.expand(logits.shape).scatter(1, place, best).log()

def build(num_classes, coarse=False):
    return Coarse(num_classes, coarse)
"""


def test_a_student_gets_the_tail_of_its_own_temperature(
    stages: Any,
    users_models: Callable[[str], str],
    teacher: dict[str, Any],
    student: dict[str, Any],
) -> None:
    name = f"{users_models(COARSE)}:build"
    plan = {}
    for who, coarse, options in (("fine", False, {"top_k": 1}), ("coarse", True, {}), ("dense", False, {})):
        plan |= {
            who: teacher | {"model": {"name": name, "coarse": coarse}, "seed": 3},
            f"{who}_targets": {"stage": "predict_targets", "teacher": who, **options},
            f"{who}_student": student
            | {"targets": f"{who}_targets", "method": {"method": "hinton", "temperature": 4}},
        }
    stages.run(plan)
    expected = stages.logits("coarse_student")
    assert (stages.logits("fine_student") - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (stages.logits("dense_student") - expected).abs().max() > 1e-2 * expected.abs().max()
