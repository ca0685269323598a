"""Export trained students as MLflow models, in a process of its own: `python -m raydistill.tracking.export_student`.

Exporting traces the network, which patches torch while it lasts: not beside a training in the same process. And a
model of the user's that hangs or crashes takes nobody with it. Reads a JSON list of {"stage": folder, "to": folder}
from stdin; writes each model to `to`, and how it went to `to`.json as {"error": message or null}.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raydistill.tracking.store import import_mlflow

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
EXAMPLES = 4  # a batch of one would be taken for a constant


def export_all(requests: list[dict[str, str]]) -> None:
    """Export each student; the failure of one is noted and the next one goes on."""
    for request in requests:
        target = Path(request["to"])
        error = None
        try:
            export(Path(request["stage"]), target)
        except Exception as failure:  # whatever a user's model raises
            lines = str(failure).strip().splitlines() or [""]
            error = f"{type(failure).__name__}: {lines[0]}"
        report = target.with_name(f"{target.name}.json")
        temporary = report.with_suffix(".tmp")
        temporary.write_text(json.dumps({"error": error}))
        temporary.replace(report)


def export(stage: Path, target: Path) -> None:
    """Write the model of a finished stage as an exported program with signature."""
    description = json.loads((stage / DESCRIPTION).read_text())
    _check(stage)
    model = build_raw_input_model(stage, description)
    example = _example(description["input_shape"])
    import_mlflow()
    from mlflow.models import infer_signature
    from mlflow.pytorch import save_model

    save_model(
        model,
        str(target),
        signature=infer_signature(example, model(_tensor(example)).numpy()),
        input_example=example,
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "torch", "numpy")],
        metadata={"class_names": description["class_names"], "task": description["task"].get("name", "")},
    )


def build_raw_input_model(stage: Path, description: Mapping[str, Any]) -> Any:
    """The trained network, frozen, taking raw inputs (B, ...) scaled to [0, 1] and returning logits (B, C) float32."""
    import torch
    from safetensors.torch import load_model
    from torch import Tensor, nn

    from raydistill.models.build import build_model

    class RawInputModel(nn.Module):
        """Normalisation and network in one."""

        mean: Tensor
        std: Tensor

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor(description["mean"]))
            self.register_buffer("std", torch.tensor(description["std"]))

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.network((inputs - self.mean) / self.std)
            return logits.float()

    config = description["model"]
    shape = tuple(description["input_shape"])
    network = build_model(config["name"], config["options"], shape, description["num_classes"])
    load_model(network, str(stage / WEIGHTS))
    return RawInputModel(network).eval().requires_grad_(False)


def _check(stage: Path) -> None:
    expected = json.loads((stage / "record.json").read_text())["payload"][WEIGHTS]
    with (stage / WEIGHTS).open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
            raise ValueError(f"`{stage / WEIGHTS}` is damaged: its checksum differs from the record")


def _example(input_shape: list[int]) -> Any:
    import numpy

    return numpy.random.default_rng(0).random((EXAMPLES, *input_shape), dtype=numpy.float32)


def _tensor(values: Any) -> Any:
    import torch

    return torch.from_numpy(values)


if __name__ == "__main__":
    export_all(json.load(sys.stdin))
