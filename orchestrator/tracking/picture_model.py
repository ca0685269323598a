"""What `mlflow.pyfunc.load_model` loads of a student of pictures: the program that MLflow's torch flavour keeps, behind
the task's own reader of pictures.

Nothing is unpickled: the program is one of `torch.export`, read as those of teachers are (`models/torch_program.py`),
and what the task is stands in JSON. No code comes with the model: a network of the user's own is in the program, and a
task of the user's own is left to the torch flavour (`can_read`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydistill.errors import PlanError
from raydistill.inference.form import Form
from raydistill.inference.given import Answering, decoded_text
from raydistill.models.programs import open_program
from raydistill.plan.schema import build_task
from raydistill.runs.files import read_json

DESCRIPTION = "raydistill.json"
PROGRAM = "data/model.pt2"  # where MLflow's torch flavour puts it
LOADER = "raydistill.tracking.picture_model"


def can_read(description: Mapping[str, Any]) -> bool:
    """Whether a model is of pictures that its task reads without code of the user's own."""
    named = description["task"].get("name", "")
    if ":" in named:
        return False
    try:
        return Form.described(description, build_task(description["task"])).takes_pictures
    except (ValueError, PlanError):
        return False


class PictureModel:
    """A student that is given raw pictures."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        """Probabilities (N, C): of pictures, as bytes, as base64 text or as `pathlib.Path` of a file, in a list or in
        the one column of a data frame; or of an array (N, channels, height, width), bytes or numbers in [0, 1].

        A text is never a path: MLflow's server would open files for whoever asks.
        """
        inputs = _listed(model_input)
        if isinstance(inputs, np.ndarray):
            return self.answering.arrays(inputs)
        return self.answering.pictures([_picture(one, place) for place, one in enumerate(inputs)])


def _load_pyfunc(path: str) -> PictureModel:
    """MLflow calls this with the model's folder."""
    told = read_json(Path(path) / DESCRIPTION)
    program = open_program(Path(path) / PROGRAM)

    @torch.no_grad()
    def probabilities(raw: Tensor) -> Tensor:
        found: Tensor = program(raw)
        return found

    form = Form.described(told, build_task(told["task"]))
    return PictureModel(Answering(probabilities, told["class_names"], form))


def _listed(given: Any) -> NDArray[Any] | list[Any]:
    """An array of numbers, or a list of pictures."""
    if hasattr(given, "columns"):
        if len(given.columns) != 1:
            raise PlanError(f"a table of pictures has one column, not {len(given.columns)}")
        given = given.iloc[:, 0]
    if isinstance(given, bytes | str | Path):
        return [given]
    if not isinstance(given, np.ndarray):
        cells = list(given) if isinstance(given, Iterable) else [given]
        if cells and all(isinstance(one, bytes | str | Path) for one in cells):
            return cells
        given = np.array(cells)  # of a column of arrays, or of nested lists
    return given.tolist() if given.dtype.kind in "OSU" else given


def _picture(one: Any, place: int) -> bytes | Path:
    if isinstance(one, str):
        return decoded_text(one, place)
    if isinstance(one, bytes | Path):
        return one
    raise PlanError(f"picture {place} is neither bytes nor a path, but {type(one).__name__}")
