"""Statistics, reconstructions, a student of these: who looks at what, and that nothing depends on who does the work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raydistill.execution.run_stage import run_stage
from raydistill.runs.files import sha256_file
from raydistill.stages import record_statistics, synthesize
from raydistill.stages.verify_targets import verify_targets
from raydistill.targets.reader import open_targets
from raydistill.targets.store import load_manifest
from raydistill.tasks.tensors import Tensors

SYNTHESIZE = {
    "stage": "synthesize",
    "teacher": "teacher",
    "statistics": "statistics",
    "batches": 3,
    "batch_size": 8,
    "steps": 10,
}
SOFT = {"method": "hinton", "temperature": 8, "soft_weight": 1.0, "hard_weight": 0.0}


@pytest.fixture
def plan(stages: Any, teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """Everything that the task says is in the plan, so that nothing but its data is in the file."""
    stages.task = {"classes": 3, "shape": [1, 8, 8]}
    model = {"name": "mlp", "widths": [16], "dropout": 0.2}
    return {
        "teacher": teacher | {"model": model},
        "statistics": {"stage": "record_statistics", "teacher": "teacher", "layers": "all"},
        "images": SYNTHESIZE,
        "student": student
        | {"teachers": ["teacher"], "transfer": {"synthesized": "images"}, "method": SOFT, "epochs": 3},
    }


def only(plan: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    """Some stages of the plan; `changes` are made to `images`."""
    plan["images"] = plan["images"] | changes
    return {name: plan[name] for name in names}


def made(stages: Any, *names: str) -> dict[int, Tensor]:
    """Every synthesised input by its id."""
    found: dict[int, Tensor] = {}
    for name in names:
        for file in sorted(stages.folder(name).path.glob("samples-*.safetensors")):
            part = load_file(file)
            found |= dict(zip(part["ids"].tolist(), part["inputs"], strict=True))
    return found


def test_statistics_are_those_of_the_teachers_activations(stages: Any, plan: dict[str, Any]) -> None:
    plan["statistics"] |= {"batch_size": 7, "temperature": 2.0}
    stages.run(only(plan, "teacher", "statistics") | {"targets": predicting()})
    arrays = np.load(stages.file)
    ids = open_targets(stages.folder("targets").path, root=stages.root, expect=None).ids.numpy()
    teacher = stages.model("teacher")
    known = teacher.normalisation
    for label in range(3):
        chosen = np.isin(arrays["ids"], ids) & (arrays["labels"] == label)
        inputs = (torch.from_numpy(arrays["inputs"][chosen]) - known.mean) / known.std
        hidden = teacher.model.hidden1.linear(inputs.flatten(1)).numpy()
        logits = teacher.model(inputs).numpy() / 2
        stored = load_file(stages.folder("statistics").path / f"class-{label:05d}.safetensors")
        for name, values in (("hidden1_pre", hidden), ("logits", logits)):
            np.testing.assert_allclose(stored[f"{name}/mean"], values.mean(axis=0), atol=1e-4)
            factor = stored[f"{name}/factor"].numpy()
            np.testing.assert_allclose(factor @ factor.T, np.cov(values.T), atol=1e-3)


def predicting(**transfer: Any) -> dict[str, Any]:
    return {"stage": "predict_targets", "teacher": "teacher", "transfer": transfer}


def test_a_large_layer_keeps_deviations_alone(stages: Any, plan: dict[str, Any]) -> None:
    plan["statistics"] |= {"largest_covariance": 10}
    stages.run(only(plan, "teacher", "statistics", "images"))
    stored = load_file(stages.folder("statistics").path / "class-00000.safetensors")
    assert "hidden1_pre/factor" not in stored
    assert "logits/factor" in stored


def test_nothing_is_synthesised_or_predicted_with_the_data_at_hand(
    stages: Any, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading the data would raise; and while inputs are synthesised it is not even there."""

    def refuse(task: Any) -> None:
        raise AssertionError("the task's data was asked for")

    stages.run(only(plan, "teacher", "statistics"))
    stages.write(plan)
    requests = {name: stages.request(name) for name in ("images", "teacher.targets")}
    monkeypatch.setattr(Tensors, "load", refuse)
    monkeypatch.setattr(Tensors, "read", refuse)
    hidden = stages.file.rename(stages.file.with_suffix(".hidden"))
    outcome = run_stage(requests["images"])
    assert outcome.status == "done", outcome.error
    hidden.rename(stages.file)
    outcome = run_stage(requests["teacher.targets"])
    assert outcome.status == "done", outcome.error
    assert len(made(stages, "images")) == 3 * 3 * 8


def test_a_student_learns_nothing_from_the_training_split(
    stages: Any, plan: dict[str, Any], hide_training_split: Callable[[], None]
) -> None:
    """It is the same, to the bit, beside a training split of which nothing can be asked."""

    stages.run(plan)
    expected = stages.model("student").model.state_dict()
    hide_training_split()
    stages.folder("student").forget()
    outcome = stages.attempt("student")
    assert outcome.status == "done", outcome.error
    again = stages.model("student").model.state_dict()
    assert all(torch.equal(again[key], value) for key, value in expected.items())


def test_images_are_the_same_from_however_many_shards_and_more_batches_keep_the_first(
    stages: Any, plan: dict[str, Any]
) -> None:
    stages.run(only(plan, "teacher", "statistics", "images"))
    whole = made(stages, "images")
    stages.run(only(plan, "teacher", "statistics", "images", shards=2))
    parts = made(stages, "images.0", "images.1")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(parts[sample], image) for sample, image in whole.items())
    stages.run(only(plan, "teacher", "statistics", "images", shards=1, batches=4))
    more = made(stages, "images")
    assert len(more) == len(whole) + 3 * 8
    assert all(torch.equal(more[sample], image) for sample, image in whole.items())


def test_another_seed_gives_other_images(stages: Any, plan: dict[str, Any]) -> None:
    other = {"other": SYNTHESIZE | {"seed": 1}}
    stages.run(only(plan, "teacher", "statistics", "images") | other)
    one, two = made(stages, "images"), made(stages, "other")
    assert one.keys() == two.keys()
    assert not any(torch.equal(one[sample], two[sample]) for sample in one)


def test_a_stopped_synthesis_goes_on_and_ends_the_same(stages: Any, plan: dict[str, Any]) -> None:
    chosen = only(plan, "teacher", "statistics", "images")
    stages.run(chosen)
    other = stages.elsewhere("again")
    other.write(chosen)
    for name in ("teacher", "statistics"):
        assert other.attempt(name).status == "done"
    assert other.attempt("images", iter([False] * 4 + [True]).__next__).status == "stopped"
    kept = checksums(other.folder("images").path)
    assert len(kept) == 4
    assert other.attempt("images").status == "done"
    assert checksums(other.folder("images").path) == checksums(stages.folder("images").path)
    assert other.record("images").metrics == stages.record("images").metrics


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.glob("samples-*.safetensors")}


WITH_BATCH_NORM = """
from torch import nn

def build(num_classes):
    hidden = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16))
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, num_classes))
    model.feature_paths = {"hidden": "1"}
    return model
"""


@pytest.mark.parametrize("objective", ["top", "all", "dropout"])
def test_reconstructions_look_like_their_class_to_the_teacher_which_does_not_move(
    stages: Any,
    plan: dict[str, Any],
    users_models: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    """Batch norm has buffers that would follow the inputs if the network were not in eval mode."""
    plan["teacher"] |= {"model": {"name": f"{users_models(WITH_BATCH_NORM)}:build"}}
    plan["statistics"] |= {"layers": ["hidden"]}
    used: list[torch.nn.Module] = []

    def tapped(model: torch.nn.Module, layers: tuple[str, ...]) -> torch.nn.Module:
        used.append(model)
        return record_statistics.tapped(model, layers)

    monkeypatch.setattr(synthesize, "tapped", tapped)
    chosen = only(plan, "teacher", "statistics", "images", objective=objective, steps=100)
    stages.run(chosen | {"noise": plan["images"] | {"steps": 0}})
    trained = load_file(stages.folder("teacher").path / "model.safetensors")
    assert len(used) == 2
    for model in used:
        assert all(torch.equal(trained[key], value) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
    images, noise = stages.record("images").metrics, stages.record("noise").metrics
    assert images["synthesize/loss"] < 0.3 * noise["synthesize/loss"]
    assert images["synthesize/agreement"] > max(0.8, noise["synthesize/agreement"])


def test_targets_say_which_samples_they_are_about_and_are_verified_on_them(
    stages: Any, plan: dict[str, Any]
) -> None:
    stages.run(plan)
    folder = stages.folder("teacher.targets")
    manifest = load_manifest(folder.path)
    assert manifest.split != "train"
    assert manifest.transfer["synthesized"] == [stages.record("images").fingerprint]
    images = made(stages, "images")
    targets = open_targets(folder.path, root=stages.root, expect=None)
    expected = stages.model("teacher").logits(torch.stack([images[i] for i in targets.ids.tolist()]))
    found = targets.read(torch.arange(len(images))).logits[:, 0]
    found, expected = (logits - logits.amax(dim=1, keepdim=True) for logits in (found, expected))
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-3)  # what float16 keeps of a distance
    (result,) = verify_targets(folder.path, stages.root, rows=20).values()
    assert result.passed


def test_targets_of_other_samples_are_refused_although_the_ids_agree(
    stages: Any, plan: dict[str, Any]
) -> None:
    """The plan sees it too; here the student's stage is asked, as by a plan that was changed by hand."""
    plan |= {"other": SYNTHESIZE | {"seed": 1}, "of_other": predicting(synthesized="other")}
    stages.run(plan)
    stages.folder("student").unfinish()
    request = stages.request("student")
    request.reads["teacher.targets"] = stages.graph.nodes["of_other"].folder
    outcome = run_stage(request)
    assert outcome.status == "failed"
    assert "have `split` synthesized-" in str(outcome.error)


def test_a_part_of_the_synthesised_samples_is_chosen_as_of_any_others(
    stages: Any, plan: dict[str, Any]
) -> None:
    transfer = {"synthesized": "images", "fraction": 0.5, "omit_classes": [1]}
    stages.run(only(plan, "teacher", "statistics", "images") | {"targets": predicting(**transfer)})
    ids = open_targets(stages.folder("targets").path, root=stages.root, expect=None).ids
    assert len(ids) == 2 * 3 * 8 / 2
    assert not (ids // 8 % 3 == 1).any()


def test_models_train_on_the_classes_that_were_asked_for(
    stages: Any, plan: dict[str, Any], teacher: dict[str, Any]
) -> None:
    hard = teacher | {"transfer": {"synthesized": "images"}, "epochs": 20}
    stages.run(only(plan, "teacher", "statistics", "images") | {"hard": hard})
    assert stages.metrics("hard")[-1]["train/accuracy"] > 0.9


def test_what_cannot_be_synthesised_says_what_to_change(stages: Any, plan: dict[str, Any]) -> None:
    plan["teacher"] |= {"model": {"name": "mlp", "widths": [16]}}
    too_many = {"too_many": SYNTHESIZE | {"shards": 10}}
    stages.write(only(plan, "teacher", "statistics", "images", objective="dropout") | too_many)
    for name in ("teacher", "statistics"):
        assert stages.attempt(name).status == "done"
    assert "no dropout layer to thin it by; write `objective: all`" in str(stages.attempt("images").error)
    assert "fewer batches than shards" in str(stages.attempt("too_many.9").error)


def test_a_layer_that_the_teacher_does_not_have_is_named(stages: Any, plan: dict[str, Any]) -> None:
    plan["statistics"] |= {"layers": ["hiden1_pre"]}
    stages.write(only(plan, "teacher", "statistics"))
    assert stages.attempt("teacher").status == "done"
    assert "no feature `hiden1_pre`; did you mean `hidden1_pre`" in str(stages.attempt("statistics").error)


def test_samples_of_two_stages_with_the_same_ids_are_refused(stages: Any, plan: dict[str, Any]) -> None:
    both = {"other": SYNTHESIZE | {"seed": 1}, "targets": predicting(synthesized=["images", "other"])}
    stages.write(only(plan, "teacher", "statistics", "images") | both)
    for name in ("teacher", "statistics", "images", "other"):
        assert stages.attempt(name).status == "done"
    assert "samples with the same ids" in str(stages.attempt("targets").error)
