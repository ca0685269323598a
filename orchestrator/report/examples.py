"""A few test pictures, chosen because the teacher's soft targets say more about them than their labels do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import DistillError
from raydistill.plan.schema import build_task
from raydistill.report.predictions import Teaching
from raydistill.runs.stored_predictions import Integers, StoredPredictions
from raydistill.tasks.task import Task

CLASSES_SHOWN = 5
UNCERTAIN, MISTAKEN = 4, 4

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Bar:
    """One class of one picture: probabilities by teacher and student at T = 1 and at the student's temperature."""

    label: int
    teacher: tuple[float, ...]
    student: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """A test sample with what teacher and student say about it. `picture` is (H, W) or (H, W, 3)."""

    sample: int
    label: int
    teacher_says: int
    student_says: int
    bars: tuple[Bar, ...]
    picture: Picture


def choose_samples(student: StoredPredictions, teaching: Teaching) -> list[int]:
    """Positions of up to eight samples of as many classes as possible.

    First those about which the teacher is right and least sure, then those where the student errs and is most
    sure, with one that the teacher gets wrong too.
    """
    probabilities = teaching.probabilities()
    is_right = probabilities.argmax(axis=1) == student.labels
    student_is_right = student.predicted() == student.labels
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(axis=1)
    confidence = student.probabilities().max(axis=1)
    labels = student.labels
    unsure = _spread_over_classes(entropy, is_right, labels, UNCERTAIN)
    both = _spread_over_classes(confidence, ~student_is_right & ~is_right, labels, 1, taken=unsure)
    alone = _spread_over_classes(
        confidence, ~student_is_right & is_right, labels, MISTAKEN - len(both), taken=unsure
    )
    room = UNCERTAIN + MISTAKEN - len(unsure) - len(alone) - len(both)
    more = _spread_over_classes(entropy, is_right, labels, room, taken=[*unsure, *alone])
    return [*unsure, *more, *alone, *both]


def _spread_over_classes(
    score: NDArray[np.floating[Any]],
    allowed: NDArray[np.bool_],
    labels: Integers,
    count: int,
    taken: Sequence[int] = (),
) -> list[int]:
    """Positions of the highest scores: the best of each class before the second best of any."""
    order = [int(position) for position in np.argsort(-score, kind="stable") if allowed[position]]
    order = [position for position in order if position not in set(taken)]
    seen: dict[int, int] = {}
    rounds = []
    for position in order[: 50 * count]:
        label = int(labels[position])
        rounds.append((seen.get(label, 0), position))
        seen[label] = seen.get(label, 0) + 1
    return [position for _, position in sorted(rounds, key=lambda item: item[0])[:count]]


def describe_examples(
    positions: Sequence[int],
    student: StoredPredictions,
    teaching: Teaching,
    temperature: float,
    pictures: Sequence[Picture],
) -> list[Example]:
    """The chosen samples with the classes that matter for each."""
    rows = np.asarray(positions, dtype=np.int64)
    chosen = student.at(rows)
    taught = [teaching.at(rows).probabilities(heat) for heat in (1.0, temperature)]
    learned = [chosen.probabilities(heat) for heat in (1.0, temperature)]
    examples = []
    for row, picture in enumerate(pictures):
        label, student_says = int(chosen.labels[row]), int(learned[0][row].argmax())
        classes = _classes_to_show(taught[1][row], {label, student_says})
        shares = {
            shown: [[float(at[row, shown]) for at in says] for says in (taught, learned)] for shown in classes
        }
        bars = tuple(
            Bar(shown, tuple(teacher), tuple(student)) for shown, (teacher, student) in shares.items()
        )
        teacher_says = int(taught[0][row].argmax())
        examples.append(Example(int(chosen.ids[row]), label, teacher_says, student_says, bars, picture))
    return examples


def _classes_to_show(probabilities: NDArray[np.float32], wanted: set[int]) -> list[int]:
    """The largest probabilities, with those that must be seen in place of the last ones; largest first."""
    order = [int(label) for label in np.argsort(-probabilities, kind="stable")]
    others = [label for label in order if label not in wanted][: CLASSES_SHOWN - len(wanted)]
    return [label for label in order if label in wanted or label in others]


def load_pictures(description: Mapping[str, Any], ids: Integers, labels: Integers) -> list[Picture] | str:
    """The test pictures with these ids, or a sentence that says why there are none. Nothing is downloaded."""
    try:
        task = build_task(dict(description))
        shape = task.input_shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            return f"The inputs of task {task.name} are not pictures, so there is nothing to look at."
        return _read_pictures(_at_rest(task), ids, labels)
    except (DistillError, ValueError, OSError) as error:
        return f"The test pictures cannot be read: {error}"


def _at_rest(task: Task) -> Task:
    """The same task without downloads and without processes of its own."""
    calm = {"download": False, "workers": 0}
    return task.model_copy(
        update={key: value for key, value in calm.items() if key in type(task).model_fields}
    )


def _read_pictures(task: Task, ids: Integers, labels: Integers) -> list[Picture]:
    task.require_files()
    arrays = task.read()["test"]
    rows = {int(sample): row for row, sample in enumerate(arrays.ids)}
    positions = np.array([rows.get(int(sample), -1) for sample in ids], dtype=np.int64)
    if (positions < 0).any() or (arrays.labels[positions] != labels).any():
        raise ValueError("the data has changed since the models were judged")
    inputs = arrays.inputs
    pixels = inputs[positions] if inputs.ndim == 4 else _decode(task, positions)
    return [to_picture(image) for image in pixels]


def _decode(task: Task, positions: Integers) -> NDArray[np.float32]:
    """Pictures that lie on disk as files, through the task's own loading."""
    import torch

    rows = torch.from_numpy(positions)
    batches = task.load().test.select(rows).batches([torch.arange(len(rows))], None)
    pixels: NDArray[np.float32] = next(iter(batches)).numpy()
    return pixels


def to_picture(image: NDArray[Any]) -> Picture:
    """(C, H, W) of any type to 256 grey levels or colours, (H, W) or (H, W, 3)."""
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            image = (image - low) / max(high - low, 1e-12)
        image = (image * 255).round().astype(np.uint8)
    picture: Picture = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    return picture
