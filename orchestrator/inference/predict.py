"""Inputs in, predictions out, a batch at a time."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from raydistill.errors import PlanError
from raydistill.inference.batches import Batch, decoded, regrouped
from raydistill.inference.form import Form
from raydistill.inference.inputs import found
from raydistill.inference.labels import Labelled, Prediction, label
from raydistill.prediction import Predictor, load_predictor, scaled, task_of
from raydistill.tasks.task import GREY_LEVELS, Task
from raydistill.training.model_files import TrainedModel
from raydistill.training.trust import NOBODY, Trust

SAMPLES = 1000  # that stand for a task, and of large ones as many as hold so many values
MOST_VALUES = 2**25


def predict_batches(
    model: Path,
    inputs: Iterable[Path | str],
    top: int = 3,
    trust: Trust = NOBODY,
    *,
    columns: Sequence[str] = (),
    folder: Path | None = None,
) -> Iterator[Labelled]:
    """Label all inputs, in their order, a batch at a time: pictures and arrays, folders and patterns of them, tars, CSV
    and Parquet. Those that cannot be read have their error in their place.

    Pictures are read by the task that the model was trained on, as for its evaluation, and go through the model in
    batches of the same size: a test split's pictures in their order give its stored predictions to the last bit.
    `columns` are those of tables with inputs, where their names do not say it; paths in tables begin in `folder`, or
    else in the table's own.
    """
    predictor = load_predictor(model, trust)
    form = Form.of(predictor.first, task_of(predictor, model, trust), columns, folder)
    for batch in regrouped(read_inputs(inputs, form)):
        yield label(batch, predictor, top)


def predict_files(
    model: Path,
    inputs: Iterable[Path | str],
    top: int = 3,
    trust: Trust = NOBODY,
    *,
    columns: Sequence[str] = (),
    folder: Path | None = None,
) -> Iterator[Prediction]:
    """As `predict_batches`, one by one."""
    return chain.from_iterable(predict_batches(model, inputs, top, trust, columns=columns, folder=folder))


def read_inputs(inputs: Iterable[Path | str], form: Form) -> Iterator[Batch]:
    """All inputs in batches of any size, pictures decoded."""
    return decoded(found(inputs, form), form.decode)


def real_samples(predictor: Predictor, folder: Path, trust: Trust, files: Iterable[Path] = ()) -> Tensor:
    """Raw inputs (N, ...) in `files`, or of the test split of the model's task: bytes where they are grey levels.

    `PlanError` names what cannot be read.
    """
    task, model = task_of(predictor, folder, trust), predictor.first
    inputs = _in_files(paths, task, model) if (paths := list(files)) else _of_task(task, model)
    levels = inputs * 255
    if GREY_LEVELS not in model.description.get("inputs", "") or not inputs.is_floating_point():
        return inputs
    is_of_bytes = (levels - levels.round()).abs().max() < 1e-3 and inputs.min() >= 0 and inputs.max() <= 1
    return levels.round().to(torch.uint8) if is_of_bytes else inputs


def _in_files(files: Iterable[Path], task: Task, model: TrainedModel) -> Tensor:
    batches = list(read_inputs(files, Form.of(model, task)))
    for batch in batches:
        for error in batch.errors.values():
            raise PlanError(error)
    return torch.cat([scaled(torch.from_numpy(batch.values)) for batch in batches])


def _of_task(task: Task, model: TrainedModel) -> Tensor:
    try:
        data = task.load()
    except (FileNotFoundError, ValueError) as error:
        raise PlanError(
            f"samples of the model's task are wanted; name files with `--samples`: {error}"
        ) from None
    split = data.test if len(data.test) else data.validation
    count = min(SAMPLES, len(split), max(2, MOST_VALUES // math.prod(model.input_shape)))
    (inputs,) = split.batches([torch.linspace(0, len(split) - 1, count).long()], None)
    return inputs.cpu().to(model.input_dtype)
