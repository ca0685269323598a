"""Two workers make what one makes, up to rounding: also where a batch is uneven or smaller than the group."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydistill.kinds.method_options import MethodOptions

METHODS = MethodOptions.choices()

WORKER = Path(__file__).with_name("data_parallel_worker.py")
NORMED = {"name": "cnn", "widths": [4], "batch_norm": True, "hidden": [8]}
STAGED = {"name": "cnn", "widths": [4, 6], "batch_norm": True}
AUGMENT = [
    {"name": "shift", "pixels": 1},
    {"name": "resized_crop", "scale": [0.5, 1.0]},
    {"name": "trivial_augment"},
    {"name": "cutmix"},
    {"name": "mixup", "alpha": 0.5},
]
FRAGILE = """
import torch
from torch import nn

class Fragile(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)
        self.steps = 0

    def forward(self, inputs):
        self.steps += 1
        is_broken = self.steps == 4 and torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        return self.linear(inputs.flatten(1)) * (float("nan") if is_broken else 1.0)

def build(num_classes):
    return Fragile(num_classes)
"""
# One layer no loss reaches; two others take turns, so that each is idle in every other step.
IDLE = """
from torch import nn

class Idle(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, num_classes) for _ in range(2))
        self.idle = nn.Linear(64, num_classes)
        self.steps = 0

    def forward(self, inputs):
        self.steps += self.training
        return self.heads[self.steps % 2](inputs.flatten(1))

def build(num_classes):
    return Idle(num_classes)
"""


BALANCED = {"sampler": "balanced", "augment": [{"name": "mixup"}]}


def plan_of(teacher: dict[str, Any], student: dict[str, Any], fragile: str, idle: str) -> dict[str, Any]:
    """108 training samples: batches of 25 leave 8 for the last, batches of 107 leave one."""
    bounded = {"clip_norm": 0.5, "max_norm": 0.8, "label_smoothing": 0.1, "schedule": {"name": "cosine"}}
    online = {"epochs": 2, "batch_size": 107, "optimizer": {"name": "sgd", "learning_rate": 5e-3}}
    return {
        "plain": teacher | {"batch_size": 25, "epochs": 2},
        "lonely": teacher | {"batch_size": 107, "optimizer": {"name": "adamw"}},
        "normed": teacher | {"model": NORMED, "batch_size": 107},
        "frozen": teacher | {"model": NORMED, "initial": "normed", "freeze": ["stage*"], "batch_size": 25},
        "averaged": teacher | {"model": NORMED, "batch_size": 25, "ema": {}, "epochs": 2},
        "accumulated": teacher | {"model": NORMED, "batch_size": 7, "accumulate": 4, "epochs": 2},
        "accumulated-lonely": teacher | {"batch_size": 107, "accumulate": 2, "optimizer": {"name": "adamw"}},
        "accumulated-idle": teacher | {"model": {"name": f"{idle}:build"}, "batch_size": 9, "accumulate": 3},
        "half": teacher
        | {"model": NORMED, "batch_size": 7, "accumulate": 4, "precision": "float16", "epochs": 1},
        "bounded": teacher | {"model": NORMED, "batch_size": 25, "augment": AUGMENT} | bounded,
        "stopped": teacher | {"batch_size": 5, "seed": 7},
        "balanced": teacher | {"batch_size": 25} | BALANCED,
        "weighed": teacher | {"batch_size": 25, "class_weights": [1, 2, 4], "logit_adjustment": 1},
        "binary": teacher
        | {"batch_size": 25, "binary_cross_entropy": {"threshold": 0.2}, "augment": AUGMENT},
        "targets": {"stage": "predict_targets", "teacher": "plain"},
        "student": student | {"targets": "targets", "batch_size": 25},
        "branches": {"stage": "train_branches", "model": STAGED, "deploy": "ensemble"} | online,
        "peers": {"stage": "train_peers", "peers": [STAGED, NORMED]} | online,
        "exits": {"stage": "self_distill", "model": STAGED} | online,
        "reusing": {"stage": "reuse_classifier", "student": NORMED, "teacher": "normed"} | online,
        "codistilled": {"stage": "codistill", "model": NORMED, "burn_in": 0.5, "exchange_every": 1} | online,
        "idle": teacher
        | {"model": {"name": f"{idle}:build"}, "optimizer": {"name": "adamw", "weight_decay": 0.1}},
        "fragile": teacher | {"model": {"name": f"{fragile}:build"}},
    }


def run_together(
    requests: list[dict[str, Any]], folder: Path, world: int = 2
) -> list[list[list[str | None]]]:
    """Run requests on `world` processes; the outcomes of each rank."""
    (folder / "requests.json").write_text(json.dumps(requests))
    path = os.pathsep.join([str(folder), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    arguments = [str(world), str(folder / "rendezvous"), str(folder / "requests.json")]
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), *arguments], env=environment)
        for rank in range(world)
    ]
    try:
        assert [worker.wait(timeout=300) for worker in workers] == [0] * world
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in range(world)]


def check_same(one: Any, two: Any, name: str) -> None:
    """Weights, running statistics and reported numbers agree."""
    here, there = (load_file(s.folder(name).path / "model.safetensors") for s in (one, two))
    assert here.keys() == there.keys()
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
    lines = list(zip(one.metrics(name), two.metrics(name), strict=True))
    assert lines
    for alone, together in lines:
        assert alone.keys() == together.keys()
        for key in alone:
            np.testing.assert_allclose(
                together[key], alone[key], rtol=1e-4, atol=1e-5, err_msg=f"{name}: {key}"
            )


@pytest.mark.slow  # three processes that import torch
def test_two_workers_make_what_one_makes(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], tmp_path: Path, users_models: Any
) -> None:
    plan = plan_of(teacher, student, users_models(FRAGILE), users_models(IDLE))
    alone, together = stages.run(plan), stages.elsewhere("together")
    graph = together.write(plan)
    names = [name for name in graph.nodes if name not in ("targets", "stopped", "student", "fragile")]
    requests = [together.request(name).to_dict() for name in names]
    stopped = together.request("stopped").to_dict()
    requests += [stopped | {"stop_after": 2}, stopped, together.request("fragile").to_dict()]
    first, second = run_together(requests, tmp_path)
    assert [status for status, _ in first] == ["done"] * len(names) + ["stopped", "done", "failed"]
    assert [status for status, _ in second] == [status for status, _ in first]

    for name in (
        "plain",
        "lonely",
        "stopped",
        "normed",
        "frozen",
        "averaged",
        "accumulated",
        "accumulated-lonely",
        "accumulated-idle",
        "bounded",
        "balanced",
        "weighed",
        "binary",
        "branches",
        "peers",
        "codistilled.1",
        "idle",
    ):
        check_same(alone, together, name)
    for _, error in (first[-1], second[-1]):  # a loss that only one worker sees stops both, at the same step
        assert "the loss is not finite at step 3" in (error or "")


@pytest.mark.slow  # three processes that import torch
def test_two_workers_agree_where_some_samples_have_no_label(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], tmp_path: Path
) -> None:
    arrays = dict(np.load(stages.file))
    arrays["labels"] = np.where(np.arange(150) % 3 == 0, arrays["labels"], -1)
    np.savez(stages.file, **arrays)
    taught = student | {"teachers": ["teacher"], "mode": "live", "batch_size": 25, "label_smoothing": 0.1}
    plan = {"teacher": teacher, "plain": taught, "mixed": taught | {"augment": AUGMENT}}
    alone, together = stages.run(plan), stages.elsewhere("together")
    requests = [together.request(name).to_dict() for name in together.write(plan).nodes]
    for outcomes in run_together(requests, tmp_path):
        assert [status for status, _ in outcomes] == ["done"] * 3
    for name in ("plain", "mixed"):
        check_same(alone, together, name)


@pytest.mark.slow  # three processes that import torch
def test_two_workers_read_the_same_stored_features(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], tmp_path: Path
) -> None:
    views = {"augment": [{"name": "shift", "pixels": 1}], "views": 2}
    learner = student | {"teachers": ["teacher"], "batch_size": 25, **views}
    plan = {"teacher": teacher, "blind": learner | {"method": {"method": "embedding"}}}
    plan["probe"] = teacher | {"model": student["student"], "initial": "blind", "freeze": ["hidden*"]}
    alone, together = stages.run(plan), stages.elsewhere("together")
    together.write(plan)
    for name in ("teacher", "teacher.targets"):
        assert together.attempt(name).status == "done"
    requests = [together.request(name).to_dict() for name in ("blind", "probe")]
    for outcomes in run_together(requests, tmp_path):
        assert outcomes == [["done", None]] * 2
    for name in ("blind", "probe"):
        check_same(alone, together, name)


@pytest.mark.slow  # three processes that import torch
def test_two_workers_judge_their_model_as_one_worker_does_to_the_last_bit(
    stages: Any, teacher: dict[str, Any], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=6000)
    inputs = draw.uniform(size=(6000, 1, 8, 8)).astype(np.float32)
    inputs[np.arange(6000), 0, 2 * labels] += 0.3
    np.savez(stages.file, inputs=inputs, labels=labels)
    stages.task["validation_fraction"] = (
        0.3  # 1,440 samples: three batches for two workers; and 1,200 for the test
    )
    large = teacher | {"model": NORMED, "batch_size": 256}
    stopping = {
        "early_stopping": {"patience": 1, "metric": "loss"},
        "optimizer": {"name": "sgd", "learning_rate": 2},
    }
    trained = {
        "averaged": large | {"epochs": 2, "ema": {"decay": 0.9}},
        "stopped": large | {"epochs": 12} | stopping,
        "branches": {"stage": "train_branches", "model": STAGED, "epochs": 1, "batch_size": 256},
    }
    splits = {
        f"{name}-{split}": {"stage": "evaluate", "models": [name], "split": split}
        for name in trained
        for split in ("validation", "test")
    }
    stages.write(trained | splits)
    outcomes = run_together([stages.request(name).to_dict() for name in trained], tmp_path)
    assert outcomes == [[["done", None]] * len(trained)] * 2
    for name in splits:
        model, _, split = name.rpartition("-")
        assert stages.attempt(name).status == "done"
        alone, together = stages.record(name).metrics, stages.record(model).metrics
        assert alone[f"{split}/samples"] == (1440 if split == "validation" else 1200)
        assert {key: together[key] for key in alone} == alone
    lines = stages.metrics("stopped")
    losses = [line["validation/loss"] for line in lines]
    assert len(lines) < 12, "it stopped early"
    assert stages.record("stopped").metrics["validation/loss"] == min(losses)
    best = stages.metrics("averaged")[-1]["validation/loss"]
    assert stages.record("averaged").metrics["validation/loss"] == best


LARGE = {"name": "cnn", "widths": [6, 6], "batch_norm": True}
POOLED = {"name": "resnet8"}
CASES: dict[str, dict[str, Any]] = {
    "hinton": {"method": "hinton"},
    "labels": {"method": "labels"},
    "standardised": {"method": "hinton", "standardize": True},
    "dkd": {"method": "dkd"},
    "nkd": {"method": "nkd"},
    "wsld": {"method": "wsld"},
    "curriculum": {"method": "curriculum_temperature"},
    "teacher-labels": {"method": "teacher_labels"},
    "hints": {"method": "hints", "reduction": "mean"},
    "fsp": {"method": "fsp", "reduction": "mean"},
    "embedding": {"method": "embedding"},
    "ofd": {"method": "ofd", "weight": 0.01, "teacher_bn": "running"},
    "ebkd": {"method": "ebkd"},
    "ca-mkd": {"method": "ca_mkd"},
    "attention": {"method": "attention_transfer", "weight": 10},
    "selectivity": {"method": "neuron_selectivity", "weight": 1},
    "class-attention": {"method": "class_attention", "normalize": False, "weight": 1},
    "regression": {"method": "softmax_regression"},
    "review": {"method": "review", "weight": 1},
    "information": {"method": "variational_information"},
    "semckd": {"method": "semckd", "weight": 1},
    "bank": {"method": "contrastive_bank", "negatives": 30},
    "ofd-batch": {"method": "ofd", "weight": 0.01},
    "dist": {"method": "dist"},
    "levels": {"method": "multi_level"},
    "triplet": {"method": "triplet"},
    "triplet-logits": {"method": "triplet_logits"},
    "relational": {"method": "relational"},
    "similarity": {"method": "similarity_preserving", "weight": 30},
    "probabilistic": {"method": "probabilistic_transfer", "weight": 300},
    "correlation": {"method": "correlation_congruence"},
    "contrast": {"method": "contrastive"},
    "generation": {"method": "masked_generation"},
    "ae-kd": {"method": "ae_kd"},
    "switching": {"method": "teacher_switching"},
}
# Similarities, correlations, triplets, statistics, weights or the draw of a batch: each worker has its own.
COUPLED = {
    name: options
    for name, options in CASES.items()
    if METHODS[options["method"]].couples_samples and options.get("teacher_bn") != "running"
}
SINGLE = {name: options for name, options in CASES.items() if name not in COUPLED}
AVERAGED = ("class_attention", "softmax_regression")
COMMITTEE = ("ebkd", "ca_mkd", "ae_kd", "teacher_switching")


def test_every_method_is_among_the_cases() -> None:
    assert {options["method"] for options in CASES.values()} == set(METHODS)


@pytest.mark.slow  # three processes that import torch
def test_methods_that_look_at_single_samples_do_the_same_on_two_workers(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], tmp_path: Path
) -> None:
    def taught(options: dict[str, Any]) -> dict[str, Any]:
        is_averaged = options["method"] in AVERAGED
        one = "averaged" if is_averaged else "teacher.0"
        return student | {
            "student": POOLED if is_averaged else LARGE,
            "teachers": ["teacher"] if options["method"] in COMMITTEE else [one],
            "mode": "live",
            "methods": [options],
            "batch_size": 25,
        }

    plan = {"teacher": teacher | {"model": LARGE, "replicas": 2}, "averaged": teacher | {"model": POOLED}}
    plan |= {name: taught(options) for name, options in CASES.items()}
    alone, together = stages.run(plan), stages.elsewhere("together")
    graph = together.write(plan)
    outcomes = run_together([together.request(name).to_dict() for name in graph.nodes], tmp_path)
    for rank in outcomes:
        assert rank == [["done", None]] * len(graph.nodes)
    for name in SINGLE:
        check_same(alone, together, name)
    for name in COUPLED:
        weights = load_file(together.folder(name).path / "model.safetensors")
        assert all(value.isfinite().all() for value in weights.values())
