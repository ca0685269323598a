"""`train` from end to end: what it leaves, that it resumes, and how it fails."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from raydistill.execution.run_stage import run_stage
from raydistill.models.build import build_model
from raydistill.runs.context import claim_attempt

TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, num_classes)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.head(self.second(self.first(inputs.flatten(1)).relu()).relu())

def build(num_classes):
    return Tied(num_classes)
"""


def test_exported_weights_load_into_the_plain_architecture(stages: Any, teacher: dict[str, Any]) -> None:
    cnn = teacher | {"model": {"name": "cnn", "widths": [4], "batch_norm": True}, "channels_last": True}
    stages.run({"mlp": teacher, "cnn": cnn})
    for name in ("mlp", "cnn"):
        written = stages.record(name)
        description = json.loads((stages.folder(name).path / "model.json").read_text())
        model = description["model"]
        plain = build_model(model["name"], model["options"], (1, 8, 8), 3)
        plain.load_state_dict(load_file(stages.folder(name).path / "model.safetensors"), strict=True)
        assert written.parameters == sum(p.numel() for p in plain.parameters())


def test_the_record_says_what_the_model_does(stages: Any, teacher: dict[str, Any]) -> None:
    stages.run({"teacher": teacher})
    metrics, logits = stages.record("teacher").metrics, stages.logits("teacher")
    arrays = np.load(stages.file)
    for split in ("validation", "test"):
        kept = load_file(stages.folder("teacher").path / f"predictions-{split}.safetensors")
        rows = torch.tensor([int(np.flatnonzero(arrays["ids"] == sample)[0]) for sample in kept["ids"]])
        labels = torch.from_numpy(arrays["labels"])[rows]
        assert torch.equal(labels, kept["labels"])
        torch.testing.assert_close(kept["logits"].float(), logits[rows], rtol=1e-3, atol=1e-3)
        right = (logits[rows].argmax(dim=1) == labels).double().mean().item()
        assert metrics[f"{split}/accuracy"] == pytest.approx(right)
        assert metrics[f"{split}/loss"] == pytest.approx(
            F.cross_entropy(logits[rows], labels).item(), rel=1e-4
        )
    assert metrics["test/errors"] == round(metrics["test/samples"] * (1 - metrics["test/accuracy"]))
    assert metrics["test/accuracy"] > 0.6


def test_a_teacher_that_learned_nothing_is_told(stages: Any, teacher: dict[str, Any]) -> None:
    still = teacher | {"epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 1e-9}}
    stages.task = {"validation_fraction": 0.4}
    stages.run({"teacher": teacher, "still": still})
    assert stages.record("teacher").warnings == ()
    (chance, *_) = stages.record("still").warnings
    accuracy = 100 * stages.record("still").metrics["validation/accuracy"]
    assert chance.startswith(f"on validation accuracy {accuracy:.1f} % is at the level of chance")


def test_a_class_that_the_kept_epoch_never_says_is_told_and_its_recall_is_a_metric(
    stages: Any, teacher: dict[str, Any]
) -> None:
    draw = np.random.default_rng(1)
    labels = np.r_[np.zeros(291, int), np.ones(9, int)]
    np.savez(stages.file, inputs=draw.normal(size=(300, 1, 8, 8)).astype(np.float32), labels=labels)
    stages.task = {"validation_fraction": 0.4}
    stages.run({"teacher": teacher | {"epochs": 2, "early_stopping": {"patience": 1}}})
    record = stages.record("teacher")
    assert record.metrics["validation/accuracy"] > 0.9
    assert record.metrics["validation/worst_class_recall"] == record.metrics["test/worst_class_recall"] == 0
    chance, unsaid = record.warnings
    assert "at the level of chance: `0` alone" in chance
    assert "never predicted: `1`" in unsaid


def test_a_finished_folder_holds_no_checkpoint_and_nothing_but_plain_files(
    stages: Any, teacher: dict[str, Any]
) -> None:
    stages.run({"teacher": teacher})
    assert sorted(path.name for path in stages.folder("teacher").path.rglob("*")) == [
        "attempt.json",
        "config.json",
        "log.txt",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "predictions-test.safetensors",
        "predictions-validation.safetensors",
        "record.json",
        "stamps.json",
    ]
    assert stages.folder("teacher").damage() is None


@pytest.mark.parametrize("steps", [1, 7, 28])
def test_a_stopped_stage_leaves_no_record_and_finishes_as_if_nothing_had_happened(
    stages: Any, teacher: dict[str, Any], steps: int
) -> None:
    plan = {"teacher": teacher | {"model": {"name": "mlp", "widths": [8], "dropout": 0.5}}}
    whole = stages.elsewhere("undisturbed").run(plan)
    calls = iter(range(1, 1000))
    stages.write(plan)
    outcome = stages.attempt("teacher", should_stop=lambda: next(calls) == steps)
    assert outcome.status == "stopped"
    assert stages.folder("teacher").record() is None
    assert (stages.folder("teacher").path / "checkpoint").is_dir()
    stages.run(plan)
    assert stages.record("teacher").payload == whole.record("teacher").payload
    assert stages.record("teacher").metrics == whole.record("teacher").metrics
    assert stages.metrics("teacher") == whole.metrics("teacher")


def test_a_training_that_diverges_fails_with_the_step_in_its_record(
    stages: Any, teacher: dict[str, Any]
) -> None:
    stages.write({"teacher": teacher | {"optimizer": {"name": "sgd", "learning_rate": 1e25}}})
    assert stages.attempt("teacher").status == "failed"
    record = stages.record("teacher")
    assert record.status == "failed"
    assert "is not finite at step" in (record.error or "")
    assert "Traceback" in (record.traceback or "")
    assert record.payload == {}


def test_an_attempt_that_was_superseded_leaves_no_record(stages: Any, teacher: dict[str, Any]) -> None:
    stages.write({"teacher": teacher})
    request, calls = stages.request("teacher"), iter(range(1000))

    def lose_the_stage() -> bool:
        if next(calls) == 3:
            claim_attempt(stages.folder("teacher"), "another")
        return False

    outcome = run_stage(request, should_stop=lose_the_stage)
    assert outcome.status == "failed"
    assert "another driver took over" in (outcome.error or "")
    assert stages.folder("teacher").record() is None
    assert not (stages.folder("teacher").path / "metrics.jsonl").exists()


def test_an_empty_transfer_set_is_the_stages_error(stages: Any, teacher: dict[str, Any]) -> None:
    stages.write({"teacher": teacher | {"transfer": {"fraction": 0.001}}})
    assert stages.attempt("teacher").error == (
        "the transfer set is empty; raise its `fraction` or keep more classes"
    )


def test_resources_do_not_change_the_result(stages: Any, teacher: dict[str, Any]) -> None:
    stages.run({"teacher": teacher})
    other = stages.elsewhere("other").run({"teacher": teacher | {"resources": {"memory": "1GiB"}}})
    assert stages.record("teacher").payload == other.record("teacher").payload


def test_training_goes_on_from_a_users_model_with_a_tied_weight(
    stages: Any, teacher: dict[str, Any], users_models: Callable[[str], str]
) -> None:
    begun = teacher | {"model": {"name": f"{users_models(TIED)}:build"}}
    still = {"initial": "begun", "epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 1e-30}}
    stages.run({"begun": begun, "more": begun | still})
    torch.testing.assert_close(stages.logits("more"), stages.logits("begun"))


def test_a_classifier_for_other_classes_stays_as_it_was_drawn(stages: Any, teacher: dict[str, Any]) -> None:
    still = {"epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 1e-30}}
    wide = teacher | still | {"model": teacher["model"] | {"num_classes": 5}}
    stages.run({"begun": teacher, "more": wide | {"initial": "begun"}, "drawn": wide})
    begun, more, drawn = (stages.model(name).model.state_dict() for name in ("begun", "more", "drawn"))
    for key, value in more.items():
        torch.testing.assert_close(value, (drawn if key.startswith("classifier") else begun)[key])


def test_the_weights_of_another_architecture_are_refused(stages: Any, teacher: dict[str, Any]) -> None:
    wider = teacher | {"model": {"name": "mlp", "widths": [17]}, "initial": "begun"}
    stages.write({"begun": teacher, "wider": wider})
    assert stages.attempt("begun").status == "done"
    error = str(stages.attempt("wider").error)
    assert error == "`begun` has another architecture; its weights do not fit `mlp`"


OWN = """
from torch import nn

def build(num_classes, drop=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_a_model_says_when_it_is_built_by_other_code_than_it_was_trained_with(
    stages: Any, teacher: dict[str, Any], users_models: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    module = users_models(OWN)
    stages.run({"own": teacher | {"model": {"name": f"{module}:build"}, "epochs": 1}})
    stages.model("own")
    file = Path(str(sys.modules[module].__file__))
    file.write_text(OWN + "# a comment\n")
    stages.model("own")
    assert "not built by the code" not in caplog.text
    file.write_text(OWN.replace("drop", "other"))
    stages.model("own")
    assert f"is not built by the code that it was trained with: module `{module}` changed" in caplog.text
