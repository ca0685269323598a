"""Students as MLflow models on disk, with the signature that MLflow checks inputs against.

This is the process `python -m raydistill.tracking.logged_model`: exporting traces the network, which patches torch
while it lasts, and a model of the user's that hangs or crashes takes nobody with it.
"""

import json
import shutil
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from raydistill.export import Probabilities, example_inputs
from raydistill.model_card import contract
from raydistill.runs.files import json_line, json_text, replaced_file
from raydistill.runs.folder import StageFolder
from raydistill.tracking.picture_model import DESCRIPTION, LOADER, can_read
from raydistill.tracking.store import import_mlflow
from raydistill.training import model_files
from raydistill.training.model_files import TrainedModel


def export_students(requests: list[dict[str, str]]) -> None:
    """Write the model of each finished stage as an MLflow model; the failure of one is noted and the next one goes on.

    A request is {"stage": folder, "to": folder}; how it went is written to `to`.json as {"error": message or null}.
    """
    for request in requests:
        export_noted(request["stage"], request["to"])


def export_noted(stage: str, to: str) -> None:
    """Write the model of one finished stage as an MLflow model, and beside it how that went."""
    target = Path(to)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    error = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's and torch.export's, on parts of their own
            export_student(Path(stage), target)
    except Exception as failure:  # whatever a user's model raises
        lines = str(failure).strip().splitlines() or [""]
        error = f"{type(failure).__name__}: {lines[0]}"
    with replaced_file(target.with_name(f"{target.name}.json")) as temporary:
        temporary.write_text(json_line({"error": error}), encoding="utf-8")


def export_student(stage: Path, target: Path) -> None:
    """Write the model of a finished stage as an MLflow model with signature, its contract as metadata."""
    import_mlflow()
    from mlflow.models import ModelSignature
    from mlflow.pytorch import save_model
    from mlflow.types import Schema, TensorSpec

    model = model_files.load(StageFolder(stage))
    module, inputs = Probabilities(model).eval(), example_inputs(model)
    with torch.no_grad():
        example, outputs = inputs.numpy(), module(inputs).numpy()
    # The input has no name: MLflow would then want a dict, which its torch flavour does not take.
    signature = ModelSignature(
        Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]),
        Schema([TensorSpec(outputs.dtype, (-1, *outputs.shape[1:]), name="probabilities")]),
    )
    reads_pictures = can_read(model.description)
    needed = ("mlflow", "torch", "numpy", *(("raydistill",) if reads_pictures else ()))
    save_model(
        module,
        str(target),
        signature=signature,
        input_example=example,
        pip_requirements=[f"{name}=={version(name)}" for name in needed],
        metadata=contract(model),
        serialization_format="pt2",  # on some platforms MLflow's own choice is pickle
    )
    if reads_pictures:
        _read_pictures(target, model)


def _read_pictures(target: Path, model: TrainedModel) -> None:
    """Let `mlflow.pyfunc` give the model raw pictures; `mlflow.pytorch` loads what it did before, with torch alone."""
    from mlflow.models import Model, ModelSignature

    told = contract(model)
    names = told["outputs"]["class_names"]
    keys = ("input_shape", "input_dtype", "inputs", "task")
    kept = {key: model.description[key] for key in keys if key in model.description}
    (target / DESCRIPTION).write_text(json_text({**kept, "class_names": names}), encoding="utf-8")
    saved = Model.load(str(target))
    flavour = saved.flavors["python_function"]
    flavour["loader_module"] = LOADER
    for key in ("data", "config"):  # the loader takes the whole folder, and no option
        flavour.pop(key, None)
    # A signature of inputs would take arrays alone: MLflow has none for bytes or arrays. What they are is `metadata`.
    saved.signature = ModelSignature(outputs=saved.signature.outputs)
    saved.save(str(target / "MLmodel"))


if __name__ == "__main__":
    export_students(json.load(sys.stdin))
