"""Small trained models, and what `predict` has to say of inputs that evaluation has seen."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.scheduler import run_stages
from raydistill.inference.predict import predict_files
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan, build_task
from raydistill.prediction import load_predictor
from raydistill.training.evaluation import logits_in_batches

CNN = {"name": "cnn", "widths": [4]}


def trained(task: dict[str, Any], root: Path, model: dict[str, Any] = CNN) -> Path:
    """The folder of a small network after an epoch."""
    stage = {"stage": "train", "model": model, "epochs": 1, "batch_size": 16}
    plan = Plan.model_validate({"name": "tiny", "task": task, "stages": {"model": stage}})
    graph = order_stages(plan)
    run_stages(graph, LocalBackend(), task=plan.task, root=root)
    return root / graph.nodes["model"].folder


def assert_predictions_are_those_stored(model: Path, inputs: Iterable[Path | str], **options: Any) -> None:
    """The inputs are those of the test split in their order. Stored are logits in 16 bits; probabilities are compared
    with those of the same logits in 32."""
    predictor = load_predictor(model)
    test = build_task(predictor.first.description["task"]).load().test
    logits = torch.cat(list(logits_in_batches(predictor.logits, test)))
    assert torch.equal(logits.half(), load_file(model / "predictions-test.safetensors")["logits"])
    expected = torch.softmax(logits, dim=1)
    names = predictor.first.class_names
    predictions = predict_files(model, inputs, top=len(names), **options)
    for row, prediction in zip(expected, predictions, strict=True):
        assert prediction.error is None
        found = dict(prediction.ranked)
        assert [found[name] for name in names] == row.tolist()
