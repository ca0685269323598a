"""Using a trained model: labels for files, metrics on a split."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydistill.errors import PlanError
from raydistill.plan.schema import build_task
from raydistill.runs.files import read_json
from raydistill.runs.folder import CONFIG, RECORD, StageFolder
from raydistill.training import model_files
from raydistill.training.committee import Committee
from raydistill.training.ensemble import Ensemble
from raydistill.training.evaluation import judge, predict_split
from raydistill.training.model_files import DESCRIPTION, WEIGHTS, TrainedModel

BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one input, best first."""

    source: str
    ranked: tuple[tuple[str, float], ...]


def load_model(folder: Path) -> TrainedModel:
    """A model from a stage's folder (checked against its record) or from an exported one."""
    folder = folder.absolute()
    if not (folder / DESCRIPTION).is_file() or not (folder / WEIGHTS).is_file():
        raise PlanError(f"`{folder}` holds no model: `{DESCRIPTION}` and `{WEIGHTS}` are expected there")
    if (folder / RECORD).exists():
        return model_files.load(StageFolder(folder))
    return model_files.load_files(folder)


@dataclass(frozen=True)
class Predictor:
    """Whatever answers: a model, an ensemble, or a generalist with its committee. `first` says what it is about."""

    logits: Callable[[Tensor], Tensor]
    first: TrainedModel


def load_predictor(folder: Path) -> Predictor:
    """The model in a folder, or the models that a stage of kind `evaluate` judged together."""
    folder = folder.absolute()
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if config.get("kind") != "evaluate":
        model = load_model(folder)
        return Predictor(model.logits, model)
    return _load_together(folder.parent.parent, config["config"])


def _load_together(root: Path, config: Mapping[str, Any]) -> Predictor:
    members = [model_files.load(folder) for folder in _folders(config["models"], root)]
    if (committee := config.get("committee")) is None:
        weights = config["weights"] if isinstance(config["weights"], list) else None
        return Predictor(Ensemble(members, config["rule"], weights).logits, members[0])
    folders = _folders(committee["specialists"], root)
    together = Committee(
        [model_files.load(folder) for folder in folders],
        [folder.path.name for folder in folders],
        members[0].class_names,
        active=committee["active"],
        direction=committee["direction"],
        device="cpu",
    )
    return Predictor(partial(together.logits, members[0]), members[0])


def _folders(references: Iterable[Mapping[str, str]], root: Path) -> list[StageFolder]:
    """The folders of stages that another one's identity names by their fingerprints."""
    return [StageFolder.of_fingerprint(reference["input"], root) for reference in references]


def evaluate_model(folder: Path, split: str) -> dict[str, float]:
    """Metrics of a model, or of several as one, on the validation or test split of the task it was trained on."""
    predictor = load_predictor(folder)
    try:
        data = build_task(predictor.first.description["task"]).load()
    except FileNotFoundError as error:
        raise PlanError(str(error)) from None
    chosen = data.validation if split == "validation" else data.test
    return judge(predict_split(predictor.logits, chosen), chosen.labels)


def predict_files(folder: Path, files: Sequence[Path], top: int = 3) -> list[Prediction]:
    """Label every input in `files`."""
    predictor = load_predictor(folder)
    predictions: list[Prediction] = []
    for file in files:
        names, inputs = read_inputs(file, predictor.first.input_shape)
        logits = torch.cat([predictor.logits(part) for part in inputs.split(BATCH)])
        predictions.extend(_ranked(names, logits, predictor.first.class_names, top))
    return predictions


def write_csv(path: Path, predictions: Iterable[Prediction]) -> None:
    """One line per input: the source, then classes with their probabilities."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["source", "rank", "label", "probability"])
        for prediction in predictions:
            for rank, (label, probability) in enumerate(prediction.ranked, start=1):
                writer.writerow([prediction.source, rank, label, f"{probability:.6f}"])


def read_inputs(file: Path, shape: tuple[int, ...]) -> tuple[list[str], Tensor]:
    """Inputs (N, *shape) float32 in a file, images scaled to [0, 1], and a name for each."""
    if not file.is_file():
        raise PlanError(f"`{file}` does not exist")
    if file.suffix != ".npy":
        return [str(file)], read_image(file, shape).unsqueeze(0)
    try:
        array = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise PlanError(f"`{file}` is no array of numbers: {error}") from None
    values = torch.from_numpy(np.ascontiguousarray(array))
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if tuple(values.shape) == shape:
        return [str(file)], values.unsqueeze(0)
    if tuple(values.shape[1:]) != shape:
        raise PlanError(
            f"`{file}` has the shape {tuple(values.shape)}; the model takes {shape} or (N, *{shape})"
        )
    return [f"{file}[{index}]" for index in range(len(values))], values


def read_image(file: Path, shape: tuple[int, ...]) -> Tensor:
    """An image as (C, H, W) in [0, 1], in the colours and size that the model takes."""
    from PIL import Image, UnidentifiedImageError

    if len(shape) != 3 or shape[0] not in (1, 3):
        raise PlanError(f"the model takes inputs of shape {shape}, not images; give a .npy file")
    try:
        with Image.open(file) as image:
            converted = image.convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1]))
    except UnidentifiedImageError:
        raise PlanError(f"`{file}` is no image that can be read") from None
    pixels = torch.from_numpy(np.array(converted)).float() / 255
    return pixels.unsqueeze(0) if shape[0] == 1 else pixels.permute(2, 0, 1)


def _ranked(names: Sequence[str], logits: Tensor, labels: Sequence[str], top: int) -> Iterator[Prediction]:
    values, indices = torch.softmax(logits, dim=1).topk(min(top, logits.shape[1]))
    for name, probabilities, classes in zip(names, values.tolist(), indices.tolist(), strict=True):
        words: list[Any] = [labels[index] if index < len(labels) else str(index) for index in classes]
        yield Prediction(name, tuple(zip(words, probabilities, strict=True)))
