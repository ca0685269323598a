"""A trained model as it leaves the house: raw inputs in, probabilities out, and which inputs and classes these are.

The exported program, the ONNX file, the model that MLflow logs and `distill predict` are one function.
"""

import shutil
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from raydistill.errors import PlanError, StoreError
from raydistill.inference.predict import real_samples
from raydistill.inference_cost import count_cost, measure_cost
from raydistill.model_card import CARD, ONNX, PROGRAM, Compared, Origin, card, contract
from raydistill.onnx_file import check_libraries, write_onnx
from raydistill.prediction import Predictor, load_model, load_predictor
from raydistill.runs.files import json_line, json_text
from raydistill.training.model_description import DESCRIPTION
from raydistill.training.model_files import PROGRAM as GIVEN
from raydistill.training.model_files import WEIGHTS, TrainedModel
from raydistill.training.trust import NOBODY, Trust

ExportFormat = Literal["torch", "onnx", "safetensors", "all"]

EXAMPLES = 4  # a batch of one would be taken for a constant


class Probabilities(nn.Module):
    """A model with its normalisation, from raw inputs (B, ...) to probabilities (B, C) float32."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.normalisation, self.model = model.normalisation, model.model
        self.input_dtype = model.input_dtype

    def forward(self, inputs: Tensor) -> Tensor:
        # Grey levels of 0 to 255 would be taken for pixels in [0, 1] without a word.
        torch.ops.aten._assert_tensor_metadata(inputs, None, None, self.input_dtype)
        logits: Tensor = self.model(self.normalisation(inputs))
        return torch.softmax(logits.float(), dim=1)


def export_model(
    folder: Path,
    target: Path,
    trust: Trust = NOBODY,
    *,
    format: ExportFormat = "torch",
    opset: int | None = None,
    samples: Iterable[Path] = (),
    license: str | None = None,
    measure: bool = False,
) -> list[Path]:
    """Write a model to `target`, with a page about it: weights and description, a `torch.export` program or ONNX.

    An ensemble is one ONNX file. That is compared with torch before it stands, on `samples` (files as for `predict`) or
    those of the test split; `StoreError` where it answers otherwise. `torch` writes weights and description, too. With
    `measure` the page has the model's memory and time on this machine.
    """
    wants_onnx, wants_weights, wants_program = (
        format in ("onnx", "all"),
        format != "onnx",
        format in ("torch", "all"),
    )
    if wants_onnx:
        check_libraries()
    predictor = load_predictor(folder, trust) if wants_onnx else _alone(folder, trust)
    if wants_weights and len(predictor.members) > 1:
        raise PlanError(
            f"`{folder}` is of several models, which have no weights as one; write `--format onnx`"
        )
    for member in predictor.members:
        if (given := member.description.get("program")) is not None:
            raise PlanError(f"`{folder}` is of a program that exists; it is `{folder / GIVEN / str(given)}`")
    if target.exists() and any(target.iterdir()):
        raise PlanError(f"`{target}` is not empty")
    target.mkdir(parents=True, exist_ok=True)
    origin, written = Origin.of(folder, license), []
    compared = None
    if wants_onnx:
        try:
            compared = _export_onnx(predictor, folder, target / ONNX, trust, origin, samples, opset)
        except BaseException:
            with suppress(OSError):
                target.rmdir()
            raise
        written.append(target / ONNX)
    if wants_weights:
        for name in (DESCRIPTION, WEIGHTS):
            shutil.copyfile(folder / name, target / name)
            written.append(target / name)
    name = folder.absolute().name
    cost = measure_cost(folder, trust, name) if measure else count_cost(predictor, name)
    page = card(predictor, origin, compared, cost, has_program=wants_program)
    (target / CARD).write_text(page, encoding="utf-8", errors="surrogateescape")
    written.append(target / CARD)
    if wants_program:
        try:
            export_program(predictor.first, target / PROGRAM)
        except Exception as error:
            raise StoreError(
                f"the weights are in `{target}`, but the model cannot be exported: {error}"
            ) from error
        written.append(target / PROGRAM)
    return written


def _alone(folder: Path, trust: Trust) -> Predictor:
    model = load_model(folder, trust)
    return Predictor(model.logits, [model])


def _export_onnx(
    predictor: Predictor,
    folder: Path,
    path: Path,
    trust: Trust,
    origin: Origin,
    files: Iterable[Path],
    opset: int | None,
) -> Compared:
    samples = real_samples(predictor, folder, trust, files)
    told = contract(predictor.first, samples.dtype)
    difference = write_onnx(
        predictor,
        samples,
        path,
        properties={
            "contract": json_line(told),
            "task": told["task"],
            "class_names": json_line(told["outputs"]["class_names"]),
            "fingerprint": origin.fingerprint,
            "license": origin.license or "",
        },
        class_names=told["outputs"]["class_names"],
        opset=opset,
    )
    return Compared(samples.dtype, len(samples), difference)


def export_program(model: TrainedModel, path: Path) -> None:
    """Write `torch.export`'s archive: inputs (B, ...) in, probabilities (B, C) out, any batch size.

    It carries what `contract` says as the extra file `contract.json`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export announces deprecations of its own parts
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(
            Probabilities(model), (example_inputs(model)[:2],), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, path, extra_files={"contract.json": json_text(contract(model))})


def example_inputs(model: TrainedModel) -> Tensor:
    """A few raw inputs that any model takes: numbers in [0, 1), or the integer 0."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(EXAMPLES, *model.input_shape, generator=generator).to(model.input_dtype)
