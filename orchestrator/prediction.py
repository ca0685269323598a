"""Using a trained model: labels for files, metrics on a split."""

import csv
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from raydistill.errors import DistillError, PlanError, StageError, StoreError
from raydistill.metrics import METRICS
from raydistill.runs.files import atomic_write, message_of
from raydistill.runs.folder import CONFIG, RECORD, StageFolder
from raydistill.runs.mirror import bring_all
from raydistill.runs.record import summary_of
from raydistill.runs.view import open_stage, read_identity
from raydistill.tasks.picture_files import PICTURE_ENDINGS, search
from raydistill.tasks.picture_survey import left_out
from raydistill.tasks.task import GREY_LEVELS, Task
from raydistill.training import model_files
from raydistill.training.committee import Committee
from raydistill.training.ensemble import Ensemble
from raydistill.training.evaluation import BATCH, ask, judge, keep_what_is_needed
from raydistill.training.model_description import DESCRIPTION
from raydistill.training.model_files import WEIGHTS, TrainedModel
from raydistill.training.trust import NOBODY, Trust, described_task

logger = logging.getLogger(__name__)

SAMPLES = 1000  # that stand for a task, and of large ones as many as hold so many values
MOST_VALUES = 2**25
ARRAYS = ".npy"
"""The ending of files that hold inputs as they are; all others are pictures."""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one input, best first; or the `error` for which there are none."""

    source: str
    ranked: tuple[tuple[str, float], ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Raw:
    """One raw input as the model takes it, pictures scaled to [0, 1]; or the `error` for which there is none."""

    source: str
    values: Tensor | None = None
    error: str | None = None


def load_model(folder: Path, trust: Trust = NOBODY) -> TrainedModel:
    """A model from a stage's folder (checked against its record) or from an exported one.

    Only in a folder that `trust` covers may the description name any function: its plan did.
    """
    folder = folder.absolute()
    bring_all(folder)
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


def predict_files(
    folder: Path, files: Iterable[Path], top: int = 3, trust: Trust = NOBODY
) -> Iterator[Prediction]:
    """Label every input in `files`, in their order; folders are searched.

    Pictures are read by the task that the model was trained on, as for its evaluation, and go through the model in
    batches of the same size: a test split's pictures in their order give its stored predictions to the last bit.
    """
    predictor = load_predictor(folder, trust)
    task = task_of(predictor, folder, trust)
    model = predictor.first
    raw = chain.from_iterable(
        read_inputs(file, task, model.input_shape, model.input_dtype) for file in _found(files)
    )
    return chain.from_iterable(_label(part, predictor, top) for part in _parts(raw))


def task_of(predictor: Predictor, folder: Path, trust: Trust) -> Task:
    """The task that the model in a folder was trained on."""
    try:
        return described_task(predictor.first.description["task"], folder.absolute(), trust)
    except ValueError as error:
        raise StoreError(f"`{folder / DESCRIPTION}` is damaged: `task`: {message_of(error)}") from None


def write_csv(path: Path, predictions: Iterable[Prediction]) -> None:
    """One line per input and rank, or one with its error."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["source", "rank", "label", "probability", "error"])
        for prediction in predictions:
            for rank, (label, probability) in enumerate(prediction.ranked, start=1):
                writer.writerow([prediction.source, rank, label, f"{probability:.6f}", ""])
            if prediction.error is not None:
                writer.writerow([prediction.source, "", "", "", prediction.error])


def check_output(path: Path) -> None:
    """`PlanError` when no file can be written there: better now than after the work."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise PlanError(f"`{path}` cannot be written: there is no folder `{folder}`")
    if path.is_dir():
        raise PlanError(f"`{path}` is a folder; name a file in it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PlanError(f"`{path}` cannot be written: `{folder}` does not allow it")


def read_inputs(
    file: Path, task: Task, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[Raw]:
    """The inputs of `shape` in one file: a picture, or an array of one or several. `dtype` is what the model takes."""
    try:
        if file.is_dir():
            raise PlanError(f"`{file}` holds no picture and no {ARRAYS}")
        if not file.is_file():
            raise PlanError(f"`{file}` does not exist")
        if file.suffix == ARRAYS:
            return _read_arrays(file, shape, dtype)
        return [Raw(str(file), _scaled(torch.from_numpy(task.picture_input(file, shape))))]
    except (DistillError, ValueError, OSError) as error:
        return [Raw(str(file), error=str(error))]


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
    found = [
        raw for file in _found(files) for raw in read_inputs(file, task, model.input_shape, model.input_dtype)
    ]
    for raw in found:
        if raw.error is not None:
            raise PlanError(raw.error)
    return torch.stack([raw.values for raw in found if raw.values is not None])


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


def _read_arrays(file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> list[Raw]:
    try:  # mapped: a header may promise more than memory holds
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise TypeError("it is an archive of several")
    except (ValueError, EOFError, TypeError, AttributeError) as error:
        raise PlanError(f"`{file}` is no array of numbers: {' '.join(str(error).split())}") from None
    values = _batch(array, f"`{file}`", shape, dtype)
    if array.shape == shape:
        return [Raw(str(file), values[0])]
    return [Raw(f"{file}[{index}]", row) for index, row in enumerate(values)]


def _batch(
    array: NDArray[Any], name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """An array of one or several inputs of `shape` as raw inputs (N, ...)."""
    if array.dtype.kind not in "biuf":
        raise PlanError(f"{name} is no array of numbers: it holds {array.dtype}")
    if array.shape != shape and array.shape[1:] != shape:
        raise PlanError(f"{name} has the shape {array.shape}; the model takes {shape} or (N, *{shape})")
    values = torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    if dtype == torch.int64 and values.is_floating_point():
        raise PlanError(f"{name} holds {array.dtype}; the model takes integers, which stand for things")
    return (values.long() if dtype == torch.int64 else _scaled(values)).reshape(-1, *shape)


def predict_arrays(predictor: Predictor, inputs: ArrayLike) -> NDArray[np.float32]:
    """Probabilities (N, C) of an array of inputs (N, ...), in batches of the size that evaluation has."""
    model = predictor.first
    values = _batch(np.asarray(inputs), "the batch", model.input_shape, model.input_dtype)
    parts = [torch.softmax(predictor.logits(part), dim=1) for part in values.split(BATCH)]
    return torch.cat(parts).numpy()


def _scaled(values: Tensor) -> Tensor:
    return values.float().div_(255) if values.dtype == torch.uint8 else values.float()


def _found(files: Iterable[Path]) -> Iterator[Path]:
    """Each file, and in place of a folder the pictures and arrays in it, or the folder when it has none."""
    for file in files:
        if not file.is_dir():
            yield file
            continue
        everything = list(search(file, PICTURE_ENDINGS | {ARRAYS}))
        inputs = [file / found.path for found in everything if found.reason is None]
        yield from inputs or [file]
        for line in left_out(str(file), [(found.reason, found.path) for found in everything if found.reason]):
            logger.log(logging.WARNING if line.level == "warning" else logging.INFO, line.text)


def _parts(raw: Iterable[Raw]) -> Iterator[list[Raw]]:
    """The inputs in their order, in parts with `BATCH` that could be read, whatever lies between them."""
    part: list[Raw] = []
    readable = 0
    for entry in raw:
        part.append(entry)
        readable += entry.values is not None
        if readable == BATCH:
            yield part
            part, readable = [], 0
    if part:
        yield part


def _label(part: Sequence[Raw], predictor: Predictor, top: int) -> Iterator[Prediction]:
    """Predictions of one part; all inputs that could be read go through the model in one batch."""
    values = [entry.values for entry in part if entry.values is not None]
    logits = predictor.logits(torch.stack(values)) if values else torch.empty(0, 1)
    ranked = _ranked(logits, predictor.first.class_names, top)
    for entry in part:
        if entry.error is None:
            yield Prediction(entry.source, next(ranked))
        else:
            yield Prediction(entry.source, error=entry.error)


def _ranked(logits: Tensor, labels: Sequence[str], top: int) -> Iterator[tuple[tuple[str, float], ...]]:
    values, indices = torch.softmax(logits, dim=1).topk(min(top, logits.shape[1]))
    for probabilities, classes in zip(values.tolist(), indices.tolist(), strict=True):
        words = [labels[index] if index < len(labels) else str(index) for index in classes]
        yield tuple(zip(words, probabilities, strict=True))
