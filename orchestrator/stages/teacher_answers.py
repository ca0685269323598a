"""What a student's teacher predicts for the samples that the student is judged on.

Every model left its predictions on validation and test when it was judged, so no teacher runs again: they are read, and
those of several teachers are combined as their targets are. Where weights differ from sample to sample, for a
committee, and where a teacher's predictions are gone, the answer is None: nothing is known.

Predictions are stored as float16: of two classes that are equal there, the first is the teacher's answer.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import NamedTuple

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
        order = stored.ids.argsort()
        places = np.searchsorted(stored.ids, ids, sorter=order)
        rows = order[places.clip(max=len(order) - 1)]
        if not np.array_equal(stored.ids[rows], ids):
            return None  # it was judged on other samples
        logits = stored.logits[rows].astype(np.float64)
        total = total + weight * (logits if teachers.by_logits else softmax(logits, 1.0))
    answers: Answers = total.argmax(axis=1)
    return answers
