"""What stages do on a device, on the twin: the CPU's bytes, no tensor left behind, and no wait in a step."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import raydistill
from raydistill import models, tasks
from raydistill.lookup import load_object
from raydistill.plan.augment_configs import AugmentConfig
from raydistill.plan.method_configs import METHODS
from raydistill.plan.stage_configs import STAGES
from raydistill.tasks.devices import all_to_device, to_device
from raydistill.tasks.folder_split import FolderSplit
from raydistill.tasks.frame_split import FrameSplit
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.shards_split import ShardsSplit
from raydistill.tasks.splits import Split, TensorSplit, View
from raydistill.training.loop import seed_generators

CNN = {"name": "cnn", "widths": [6, 6], "batch_norm": True}
MLP = {"name": "mlp", "widths": [8], "dropout": 0.2}
SHORT = {"epochs": 2, "batch_size": 16}
TEACHER: dict[str, Any] = {"stage": "train", "model": CNN, **SHORT}
MODEL: dict[str, Any] = {"stage": "train", "model": MLP, **SHORT}
STUDENT: dict[str, Any] = {"stage": "distill", "student": MLP, "teachers": ["teacher"], **SHORT}
LIVE: dict[str, Any] = STUDENT | {"mode": "live", "student": CNN}
AUGMENTED = {
    "augment": [{"name": kind.model_fields["name"].default} for kind in get_args(get_args(AugmentConfig)[0])]
}
COMMITTEE = {"specialists": ["specialists.0", "specialists.1"], "active": 2}
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}

# Plans of some stages, that together have every kind of stage and whatever else a stage may be told of how to compute.
PLANS: dict[str, dict[str, Any]] = {
    "ways to train": {
        "plain": TEACHER | AUGMENTED,
        "bounded": MODEL | {"clip_norm": 0.5, "max_norm": 0.8, "label_smoothing": 0.1, "optimizer": SGD},
        "scheduled": MODEL | {"schedule": {"name": "one_cycle"}, "early_stopping": {"patience": 1}},
        "laid_out": TEACHER | {"channels_last": True, "transfer": {"fraction": 0.7}},
    },
    "stored targets": {
        "teacher": TEACHER | {"replicas": 2},
        "student": STUDENT,
        "viewed": STUDENT | {"views": 2, "augment": [{"name": "flip"}, {"name": "mixup"}]},
        "weighed": STUDENT | {"combine": {"weights": "entropy"}},
        "top": {"stage": "predict_targets", "teacher": "teacher.0", "top_k": 2},
        "also": {"stage": "predict_targets", "teacher": "teacher.1", "top_k": 2},
        "both": {"stage": "combine_targets", "targets": ["top", "also"]},
        "of_few": {key: value for key, value in STUDENT.items() if key != "teachers"} | {"targets": "both"},
        "ensemble": {"stage": "evaluate", "models": ["teacher"]},
    },
    "live teachers": {
        "teacher": TEACHER | {"replicas": 2},
        "mixed": LIVE | AUGMENTED | {"combine": {"rule": "geometric", "weights": "proportional"}},
        "committee": LIVE | {"method": {"method": "ca_mkd", "feature_weight": 5, "logits_only_epochs": 0}},
        "shifted": {"stage": "adjust_class_bias", "model": "mixed", "classes": [1]},
    },
    "specialists": {
        "teacher": TEACHER,
        "clusters": {"stage": "confusion_clusters", "given": [[0, 1], [2, 3]]},
        "found": {"stage": "confusion_clusters", "generalist": "teacher", "clusters": 2},
        "specialists": {
            "stage": "train_specialists",
            "generalist": "teacher",
            "clusters": "clusters",
            **SHORT,
        },
        "full": {
            "stage": "train_specialists",
            "generalist": "teacher",
            "clusters": "clusters",
            "head": "full",
        }
        | SHORT,
        "student": STUDENT | {"committee": COMMITTEE},
        "judged": {"stage": "evaluate", "models": ["teacher"], "committee": COMMITTEE},
    },
    "without data": {
        "teacher": MODEL,
        "statistics": {"stage": "record_statistics", "teacher": "teacher", "layers": "all"},
        "images": {
            "stage": "synthesize",
            "teacher": "teacher",
            "statistics": "statistics",
            "objective": "dropout",
        }
        | {"batches": 1, "batch_size": 4, "steps": 2, "smooth_every": 1},
        "student": STUDENT
        | {"transfer": {"synthesized": "images"}}
        | {"method": {"method": "hinton", "hard_weight": 0}},
        "drawn": {
            "stage": "distill_with_generator",
            "teacher": "teacher",
            "student": MLP,
            "latent": 5,
            **SHORT,
        }
        | {"iterations": 2},
    },
    "together": {
        "branches": {"stage": "train_branches", "model": CNN, "ramp_epochs": 1, **SHORT},
        "peers": {"stage": "train_peers", "peers": [MLP, CNN], **SHORT},
        "old": {"stage": "codistill", "model": MLP, "burn_in": 0.5, "exchange_every": 1, **SHORT},
    },
}


def test_every_kind_of_stage_is_in_a_plan() -> None:
    assert {stage["stage"] for plan in PLANS.values() for stage in plan.values()} == set(STAGES)


@pytest.mark.parametrize("name", PLANS)
def test_every_stage_makes_on_a_device_what_it_makes_on_the_cpu_and_its_steps_do_not_wait(
    plans: Any, twin: Any, name: str
) -> None:
    assert plans.files(PLANS[name], "twin:0") == plans.files(PLANS[name], "cpu")
    assert twin.waits  # a wait is seen where there is one: judging a model brings its predictions to the host
    assert twin.waits_in_steps() == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_on_a_device_what_it_learns_on_the_cpu_and_waits_only_if_it_says_so(
    plans: Any, twin: Any, method: str
) -> None:
    plan = {"teacher": TEACHER, "student": LIVE | {"method": {"method": method}}}
    assert plans.files(plan, "twin:0") == plans.files(plan, "cpu")
    assert bool(twin.waits_in_steps()) == load_object(METHODS[method].implementation).waits_for_device


def test_a_training_that_was_stopped_on_a_device_goes_on_there_as_if_it_had_not(
    plans: Any, twin: Any
) -> None:
    plan = {"teacher": MODEL | {"optimizer": SGD}}
    whole = plans.files(plan, "twin:0")
    again = plans.elsewhere("again")
    assert again.stop_after(plan, 3, "twin:0").status == "stopped"
    assert again.files(plan, "twin:0") == whole


def pictures(folder: Path, draw: np.random.Generator) -> ImageFolder:
    for part in ("train/one", "train/two", "val/one", "val/two"):
        (folder / part).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(draw.integers(256, size=(9, 9, 3), dtype=np.uint8)).save(
                folder / part / f"{number}.png"
            )
    return ImageFolder(folder=folder, image_size=8, resize=8, workers=0, validation_fraction=0)


def splits(folder: Path) -> dict[str, Split]:
    """One of every class, of six samples or more."""
    draw, six = np.random.default_rng(0), torch.arange(6)
    pixels = torch.from_numpy(draw.integers(256, size=(8, 3, 4, 4), dtype=np.uint8))
    return {
        "tensors": TensorSplit(pixels[:6], six % 2, six),
        "frames": FrameSplit(
            torch.rand(9, 5), torch.tensor([0, 4, 9]), torch.tensor([-1, 0]), six, six % 2, six
        ),
        "shards": ShardsSplit(pixels, six + 2, six % 2, six),
        "pictures": pictures(folder, draw).load().train,
    }


@pytest.mark.parametrize("name", ["tensors", "frames", "shards", "pictures"])
def test_batches_reach_a_device_without_a_wait(twin: Any, tmp_path: Path, name: str) -> None:
    split: Any = splits(tmp_path)[name]
    assert isinstance(split, (TensorSplit, FrameSplit, ShardsSplit, FolderSplit))
    order, view = [torch.tensor([4, 0, 3]), torch.tensor([5])], View(1, 2)
    there = split.to("twin:0")
    before = len(twin.waits)
    batches = list(there.batches(order, view))
    once = name == "pictures"  # the workers are told the ids
    assert len(twin.waits) - before == once
    for batch, expected in zip(batches, split.batches(order, view), strict=True):
        assert batch.device.type == "twin"
        assert torch.equal(batch.cpu(), expected)


def test_what_cannot_be_pinned_as_it_lies_is_sent_all_the_same(twin: Any) -> None:
    weights: Tensor = torch.tensor([0.25, 0.75]).expand(3, -1)
    with pytest.raises(RuntimeError, match="more than one element"):
        weights.pin_memory()
    assert torch.equal(to_device(weights, "twin:0").cpu(), weights)
    there = all_to_device([torch.arange(3), torch.arange(0), torch.arange(2)], "twin:0")
    assert [part.tolist() for part in there] == [[0, 1, 2], [], [0, 1]]


def test_the_twin_refuses_what_a_gpu_refuses(twin: Any) -> None:
    there = torch.arange(3, device="twin:0")
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.arange(3)
    assert not twin.waits
    there[there > 1], int(there[0]), torch.tensor([1.0], device="twin:0")
    assert len(twin.waits) == 3


def test_only_where_a_device_is_chosen_is_one_named() -> None:
    """Elsewhere there is the CPU and all others: code that asks for CUDA runs in no test."""
    top = Path(raydistill.__file__).parent
    named = {path.relative_to(top).parts[0] for path in top.rglob("*.py") if "cuda" in path.read_text()}
    ours = [path for folder in (models, tasks) for path in Path(folder.__file__).parent.glob("*.py")]
    assert named == {"execution"}
    assert not [path for path in ours if "cuda" in path.read_text()]


def test_the_generator_of_a_device_is_seeded_with_that_of_the_cpu(twin: Any) -> None:
    seed_generators(5, torch.device("twin:0"))
    assert [
        torch.initial_seed(),
        *(g.initial_seed() for g in torch.get_device_module("twin").default_generators),
    ] == [5, 5]
