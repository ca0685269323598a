"""What a student's teacher predicts for the samples that the student is judged on.

Every model left its predictions on validation and test when it was judged, so no teacher runs again: they are read, and
those of several teachers are combined as their targets are. Where weights differ from sample to sample, for a
committee, where a teacher's predictions are gone, and where several teachers kept logits of a sample alone, the answer
is None: nothing is known.

Predictions are stored as float16: of two classes that are equal there, the first is the teacher's answer.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import StoreError
from raydistill.kinds.targets import CombineConfig
from raydistill.plan.config import ModelRef
from raydistill.plan.stage import StageConfig
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder
from raydistill.runs.stored_predictions import softmax
from raydistill.runs.view import open_stage, read_identity
from raydistill.stages.teachers import fixed_weights
from raydistill.targets.store import load_manifest
from raydistill.tasks.splits import Split

Answers = NDArray[np.int64]


class _Together(NamedTuple):
    """Teachers who answer as one: by the mean of their logits, or else of their probabilities."""

    folders: Sequence[StageFolder]
    weights: Sequence[float]
    by_logits: bool


def teacher_answers(config: StageConfig, context: StageContext) -> Callable[[str, Split], Answers | None]:
    """The function from a split's name and the split to the classes (N,) that the stage's teachers predict together."""

    @cache
    def teachers() -> _Together | None:
        refs = config.taught_by
        if all(isinstance(ref, ModelRef) for ref in refs):
            return _live(refs, getattr(config, "combine", CombineConfig()), context)
        return _stored(refs[0], context) if len(refs) == 1 else None

    known: dict[str, Answers | None] = {}

    def answers_of(name: str, split: Split) -> Answers | None:
        if name not in known:  # asked after every epoch
            with suppress(StoreError):
                known[name] = None
                if (found := teachers()) is not None:
                    known[name] = _answers(found, name, split.ids.cpu().numpy())
        return known[name]

    return answers_of


def _live(teachers: Sequence[str], combine: CombineConfig, context: StageContext) -> _Together | None:
    if combine.weights == "entropy" or not teachers:
        return None
    weights = fixed_weights(combine, teachers, context)
    folders = [context.input(teacher) for teacher in teachers]
    return _Together(folders, weights, combine.rule == "geometric")


def _stored(targets: str, context: StageContext) -> _Together | None:
    folder = context.input(targets).path
    manifest = load_manifest(folder)
    folders = [StageFolder.of_fingerprint(fingerprint, context.root) for fingerprint in manifest.teachers]
    if manifest.rule is None:
        return _Together(folders, (1.0,), by_logits=True)
    if manifest.rule == "arithmetic" and len(manifest.weights) == len(folders):
        return _Together(folders, manifest.weights, by_logits=False)
    if manifest.rule == "geometric" and read_identity(folder)["config"]["weights"] == "uniform":
        return _Together(folders, (1 / len(folders),) * len(folders), by_logits=True)
    return None


def _answers(teachers: _Together, split: str, ids: Answers) -> Answers | None:
    total = np.zeros(())
    for folder, weight in zip(teachers.folders, teachers.weights, strict=True):
        stored = open_stage(folder.path).predictions(split)
        if len(teachers.folders) == 1 and (columns := stored.columns) is not None:
            rows = _rows_of(ids, columns.ids)
            return None if rows is None else columns.predicted[rows]
        if (rows := _rows_of(ids, stored.ids)) is None:
            return None
        logits: NDArray[Any] = stored.logits[rows].astype(np.float64)
        total = total + weight * (logits if teachers.by_logits else softmax(logits, 1.0))
    answers: Answers = total.argmax(axis=1)
    return answers


def _rows_of(ids: Answers, stored: Answers) -> Answers | None:
    """Where these ids are among the stored ones; None where it was judged on other samples, or kept a part."""
    order = stored.argsort()
    places = np.searchsorted(stored, ids, sorter=order)
    rows: Answers = order[places.clip(max=len(order) - 1)]
    return rows if np.array_equal(stored[rows], ids) else None
