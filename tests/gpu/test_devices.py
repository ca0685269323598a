"""What must hold on every device: `pytest` runs it on the twin, `pytest -m gpu` on a GPU."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from raydistill.kinds.augmentations import AUGMENTATIONS, AugmentationOptions, CutmixConfig, MixupConfig
from raydistill.kinds.method_options import MethodOptions
from raydistill.lookup import load_object
from raydistill.models.outputs import map_classes
from raydistill.plan.stage import StageConfig
from raydistill.training import loop
from raydistill.training.augment import augment, mixing_partners, mixing_weights
from raydistill.training.fake_quantization import rounded_weights

METHODS = MethodOptions.choices()
# Methods that need a network whose last maps are averaged.
AVERAGED = {method: {"name": "resnet8"} for method in ("class_attention", "softmax_regression")}
# A device has a generator of its own: what it draws is not what the CPU draws.
DRAWS_NOTHING = {"triplet_logits": {"negative": "hard"}, "masked_generation": {"masked": 0}}
CNN = {"name": "cnn", "widths": [6, 6], "batch_norm": True}
MLP = {"name": "mlp", "widths": [8], "dropout": 0.2}
SHORT = {"epochs": 1, "batch_size": 16}
TEACHER: dict[str, Any] = {"stage": "train", "model": CNN, **SHORT}
MODEL: dict[str, Any] = {"stage": "train", "model": MLP, **SHORT}
STUDENT: dict[str, Any] = {"stage": "distill", "student": MLP, "teachers": ["teacher"], **SHORT}
LIVE: dict[str, Any] = STUDENT | {"mode": "live", "student": CNN}
AUGMENTED = {"augment": [{"name": kind.word} for kind in AUGMENTATIONS]}
SPECIALISTS: dict[str, Any] = {
    "stage": "train_specialists",
    "generalist": "teacher",
    "clusters": "clusters",
    **SHORT,
}
COMMITTEE = {"specialists": ["specialists.0", "specialists.1"], "active": 2}
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}

# Plans of some stages, that together have every kind of stage and whatever else a stage may be told of how to compute.
PLANS: dict[str, dict[str, Any]] = {
    "ways to train": {
        "plain": TEACHER | AUGMENTED,
        "bounded": MODEL | {"clip_norm": 0.5, "max_norm": 0.8, "label_smoothing": 0.1, "optimizer": SGD},
        "scheduled": MODEL | {"schedule": {"name": "one_cycle"}, "early_stopping": {"patience": 1}},
        "accumulated": TEACHER | {"accumulate": 2, "ema": {}, "layer_decay": 0.5, "binary_cross_entropy": {}},
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
        "said": {"stage": "external_targets"},
        "told": {key: value for key, value in STUDENT.items() if key != "teachers"} | {"targets": "said"},
        "of_few": {key: value for key, value in STUDENT.items() if key != "teachers"} | {"targets": "both"},
        "ensemble": {"stage": "evaluate", "models": ["teacher"]},
    },
    "live teachers": {
        "teacher": TEACHER | {"replicas": 2},
        "mixed": LIVE | AUGMENTED | {"combine": {"rule": "geometric", "weights": "proportional"}},
        "committee": LIVE | {"method": {"method": "ca_mkd", "feature_weight": 5, "logits_only_epochs": 0}},
        "shifted": {"stage": "adjust_class_bias", "model": "mixed", "classes": [1]},
        "brought": {"stage": "pretrained", "model": CNN},
        "int8": {"stage": "quantize", "model": "mixed", "samples": 20},
        "reusing": {"stage": "reuse_classifier", "student": CNN, "teacher": "teacher.0", **SHORT},
        "compared": {"stage": "compare_models", "models": ["teacher.0", "mixed"]},
    },
    "specialists": {
        "teacher": TEACHER,
        "clusters": {"stage": "confusion_clusters", "given": [[0, 1], [2, 3]]},
        "found": {"stage": "confusion_clusters", "generalist": "teacher", "clusters": 2},
        "specialists": SPECIALISTS,
        "full": SPECIALISTS | {"head": "full"},
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
        "exits": {"stage": "self_distill", "model": CNN, **SHORT},
        "old": {"stage": "codistill", "model": MLP, "burn_in": 0.5, "exchange_every": 1, **SHORT},
    },
}


def test_every_kind_of_stage_is_in_a_plan() -> None:
    assert {stage["stage"] for plan in PLANS.values() for stage in plan.values()} == set(
        StageConfig.choices()
    )


@pytest.mark.parametrize("name", PLANS)
def test_every_kind_of_stage_runs_on_a_device_and_its_steps_do_not_wait(
    plans: Any, device: str, watched: Any, in_steps: Any, name: str
) -> None:
    with watched() as waits:
        made = plans.files(PLANS[name], device)
    assert waits  # they are seen where there are some: judging a model brings its predictions to the host
    assert in_steps(waits) == []
    alone = plans.files(PLANS[name], "cpu")
    assert made == alone if device != "cuda" else made.keys() == alone.keys()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_steps_that_it_takes_on_the_cpu_and_waits_only_if_it_says_so(
    plans: Any, device: str, watched: Any, in_steps: Any, method: str
) -> None:
    """Three steps, one an epoch: later ones part by rounding, on a CPU too from one number of threads to another."""
    chosen = {"method": method} | DRAWS_NOTHING.get(method, {})
    taught = LIVE | {"method": chosen, "batch_size": 60, "epochs": 3}
    taught["student"] = AVERAGED.get(method, taught["student"])
    teacher = TEACHER | {"model": AVERAGED.get(method, TEACHER["model"])}
    plan = {"teacher": teacher, "student": taught}
    plans.share({"teacher": teacher}, device)
    with watched() as waits:
        plans.files(plan, device)
    plans.files(plan, "cpu")
    expected = plans.losses(plan, "student", "cpu")
    assert len(expected) == 3
    assert plans.losses(plan, "student", device) == pytest.approx(expected, rel=1e-4)
    assert bool(in_steps(waits)) == load_object(METHODS[method].implementation).waits_for_device


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(plans: Any, device: str) -> None:
    plan = {"teacher": MODEL | {"optimizer": SGD, "epochs": 2}}
    whole = plans.files(plan, device)
    again = plans.elsewhere("again")
    assert again.stop_after(plan, 3, device).status == "stopped"
    assert again.files(plan, device) == whole


def test_steps_with_scaled_gradients_do_not_wait(
    plans: Any, device: str, watched: Any, in_steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether one of them is left out stays on the device. The twin has no autocast, and neither has its CPU here."""
    if device != "cuda":
        monkeypatch.setattr(loop, "autocast", lambda device_type, precision: nullcontext())
    half = TEACHER | {"precision": "float16", "accumulate": 2, "epochs": 3}
    plan = {
        "sgd": half | {"optimizer": SGD, "ema": {}},
        "adam": half | {"optimizer": {"name": "adam"}, "clip_norm": 0.5},
    }
    with watched() as waits:
        made = plans.files(plan, device)
    assert waits
    assert in_steps(waits) == []
    alone = plans.files(plan, "cpu")
    assert made == alone if device != "cuda" else made.keys() == alone.keys()
    for name in plan:
        expected = plans.losses(plan, name, "cpu")
        assert plans.losses(plan, name, device) == pytest.approx(expected, rel=0.05)


def test_neither_classes_that_are_merged_nor_weights_that_are_rounded_are_waited_for(
    device: str, watched: Any
) -> None:
    teacher = map_classes(nn.Linear(4, 5), [[0, 2], [1], [3, 4], [1]], 2.0).to(device)
    inputs = torch.rand(6, 4).to(device)
    with watched() as waits, torch.no_grad():
        before = len(waits)  # what it took to bring all there
        merged, rounded = teacher(inputs), rounded_weights(inputs, 8)
    assert len(waits) == before
    assert merged.shape == (6, 4)
    assert rounded.shape == (6, 4)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_is_that_of_the_cpu(device: str, kind: Callable[[], Any]) -> None:
    """Bit for bit, but for the rounding of a GPU's own kernels where pixels are computed and not only moved."""
    inputs, ids = torch.rand(20, 3, 9, 9), torch.arange(20) * 3
    there = augment(inputs.to(device), ids.to(device), [kind()], 5, 2).cpu()
    here = augment(inputs, ids, [kind()], 5, 2)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5 if device == "cuda" else 0)


@pytest.mark.parametrize("step", [MixupConfig(), CutmixConfig()])
def test_mixing_draws_what_it_draws_on_the_cpu(device: str, step: AugmentationOptions) -> None:
    ids = torch.arange(50) * 3
    there = ids.to(device)
    assert torch.equal(mixing_partners(there, 5, 2, 50).cpu(), mixing_partners(ids, 5, 2, 50))
    weights = mixing_weights([step], there, 5, 2, (3, 9, 9))
    expected = mixing_weights([step], ids, 5, 2, (3, 9, 9))
    torch.testing.assert_close(
        weights.cpu(), expected, rtol=1e-6, atol=1e-7
    )  # one rounding less where a GPU fuses
