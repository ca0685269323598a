"""Using a trained model or several that answer as one: probabilities of arrays, metrics on a split."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from raydistill.errors import PlanError, StageError, StoreError
from raydistill.metrics import METRICS
from raydistill.runs.files import message_of
from raydistill.runs.folder import CONFIG, RECORD, StageFolder, fetched
from raydistill.runs.record import summary_of
from raydistill.runs.view import open_stage, read_identity
from raydistill.tasks.task import Task
from raydistill.training import model_files
from raydistill.training.committee import Committee
from raydistill.training.ensemble import Ensemble
from raydistill.training.evaluation import BATCH, ask, judge, keep_what_is_needed
from raydistill.training.model_description import DESCRIPTION
from raydistill.training.model_files import WEIGHTS, TrainedModel
from raydistill.training.trust import NOBODY, Trust, described_task


def load_model(folder: Path, trust: Trust = NOBODY) -> TrainedModel:
    """A model from a stage's folder (checked against its record) or from an exported one.

    Only in a folder that `trust` covers may the description name any function: its plan did.
    """
    folder = fetched(folder.absolute())
    if not (folder / DESCRIPTION).is_file() or not (folder / WEIGHTS).is_file():
        raise PlanError(f"`{folder}` holds no model: `{DESCRIPTION}` and `{WEIGHTS}` are expected there")
    if trust.covers(folder):
        return model_files.load(StageFolder(folder))
    if (folder / RECORD).exists():
        for name in (DESCRIPTION, WEIGHTS):
            StageFolder(folder).payload(name)
    return model_files.load_received(folder, trust.modules)


@dataclass(frozen=True)
class Predictor:
    """One model, an ensemble, or a generalist with its committee (`is_committee`): its `members`. The description of
    the first holds for all."""

    logits: Callable[[Tensor], Tensor]
    members: Sequence[TrainedModel]
    is_committee: bool = False

    @property
    def first(self) -> TrainedModel:
        """The model whose description holds for all."""
        return self.members[0]


def load_predictor(folder: Path, trust: Trust = NOBODY) -> Predictor:
    """The model in a folder, or the models that a stage of kind `evaluate` judged together."""
    folder = folder.absolute()
    try:
        if (folder / CONFIG).is_file():
            identity = read_identity(folder)  # a damaged one is an error: it may have named several models
            if open_stage(folder).makes == "judgement":
                return _load_together(folder.parent.parent, identity["config"], trust)
    except (LookupError, ArithmeticError, TypeError, AttributeError, ValueError, StageError) as error:
        raise StoreError(f"`{folder / CONFIG}` is damaged: {summary_of(error)}") from error
    model = load_model(folder, trust)
    return Predictor(model.logits, [model])


def _load_together(root: Path, config: Mapping[str, Any], trust: Trust) -> Predictor:
    members = [load_model(folder.path, trust) for folder in _folders(config["models"], root)]
    if (committee := config.get("committee")) is None:
        weights = config["weights"] if isinstance(config["weights"], list) else None
        return Predictor(Ensemble(members, config["rule"], weights).logits, members)
    folders = _folders(committee["specialists"], root)
    specialists = [load_model(folder.path, trust) for folder in folders]
    together = Committee(
        specialists,
        [folder.path.name for folder in folders],
        members[0].class_names,
        active=committee["active"],
        direction=committee["direction"],
        device="cpu",
    )
    return Predictor(partial(together.logits, members[0]), [*members, *specialists], is_committee=True)


def _folders(references: Iterable[Mapping[str, str]], root: Path) -> list[StageFolder]:
    """The folders of stages that another one's identity names by their fingerprints."""
    return [StageFolder.of_fingerprint(reference["input"], root) for reference in references]


def evaluate_model(folder: Path, split: str, trust: Trust = NOBODY) -> dict[str, float]:
    """Metrics of a model, or of several as one, on the validation or test split of the task it was trained on."""
    predictor = load_predictor(folder, trust)
    task = task_of(predictor, folder, trust)
    try:
        data = task.load()
        chosen = data.validation if split == "validation" else data.test
        keep = partial(keep_what_is_needed, len(chosen), METRICS)
        return judge(ask(predictor.logits, chosen, keep), chosen.labels)
    except (FileNotFoundError, ValueError) as error:
        raise PlanError(str(error)) from None


def task_of(predictor: Predictor, folder: Path, trust: Trust) -> Task:
    """The task that the model in a folder was trained on."""
    try:
        return described_task(predictor.first.description["task"], folder.absolute(), trust)
    except ValueError as error:
        raise StoreError(f"`{folder / DESCRIPTION}` is damaged: `task`: {message_of(error)}") from None


def as_batch(
    array: NDArray[Any], name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """An array of one or several inputs of `shape` as raw inputs (N, ...): bytes as they are, or float32, or int64 for
    a model that takes such. `PlanError` calls it by `name`."""
    if array.dtype.kind not in "biuf":
        raise PlanError(f"{name} is no array of numbers: it holds {array.dtype}")
    if array.shape != shape and array.shape[1:] != shape:
        raise PlanError(f"{name} has the shape {array.shape}; the model takes {shape} or (N, *{shape})")
    values = torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    if dtype == torch.int64 and values.is_floating_point():
        raise PlanError(f"{name} holds {array.dtype}; the model takes integers, which stand for things")
    if dtype == torch.int64:
        values = values.long()
    elif values.dtype != torch.uint8:
        values = values.float()
    return values.reshape(-1, *shape)


def predict_arrays(predictor: Predictor, inputs: ArrayLike) -> NDArray[np.float32]:
    """Probabilities (N, C) of an array of inputs (N, ...), in batches of the size that evaluation has."""
    model = predictor.first
    values = scaled(as_batch(np.asarray(inputs), "the batch", model.input_shape, model.input_dtype))
    parts = [torch.softmax(predictor.logits(part), dim=1) for part in values.split(BATCH)]
    return torch.cat(parts).numpy()


def scaled(values: Tensor) -> Tensor:
    """Raw inputs as models take them: what `as_batch` gives, bytes in [0, 1]."""
    return values.float().div_(255) if values.dtype == torch.uint8 else values
