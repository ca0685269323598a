"""Features that say nothing: whoever learns from a teacher's embedding is told before the first step.

An accuracy tells of logits that are no better than guessing. An embedding has no classes to be right about; but one
that is the same for every sample, because a layer is dead or the wrong output is read, teaches nobody anything.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.kinds.distill import DistillConfig
from raydistill.runs.context import StageContext
from raydistill.targets.reader import open_targets
from raydistill.training.data import TransferSet
from raydistill.training.loop import Teacher

SAMPLES = 64  # looked at: the first ones, in their first view
LEAST = 8  # samples may be alike by chance
FLOAT16, FLOAT32 = 2.0**-10, 2.0**-20  # what differs by less, beside its size, is rounding


def flat_features(features: Mapping[str, Tensor], resolution: float) -> Iterator[str]:
    """The names of those features (N, ...) of which no number differs between samples by more than `resolution` times
    its size. `StageError` for one that is not finite."""
    for name, values in features.items():
        rows = values.detach().flatten(1).float()
        if not bool(rows.isfinite().all()):
            raise StageError(
                f"the teacher's `{name}` has numbers that are not finite; are its weights whole?"
            )
        spread, size = rows.amax(0) - rows.amin(0), rows.abs().amax(0)
        if len(rows) >= LEAST and bool((spread <= resolution * size).all()):
            yield name


def warn_of_flat_store(context: StageContext) -> None:
    """Look at the features that the running stage has stored."""
    targets = open_targets(context.folder.path, root=context.root, expect=None, verify_checksums=False)
    if names := tuple(targets.feature_shapes):
        rows = torch.arange(min(SAMPLES, len(targets.ids)))
        features = targets.read(rows, 0, features=names).features
        for name in flat_features(features, FLOAT16):
            context.warn(_says_nothing(name, len(rows)))


@torch.no_grad()
def warn_of_flat_teachers(
    teacher: Teacher, transfer: TransferSet, config: DistillConfig, context: StageContext
) -> None:
    """Ask the teachers that run beside a student once, on samples that it will learn from."""
    rows = torch.arange(min(SAMPLES, len(transfer)))
    (batch,) = transfer.batches([rows], 0)
    for number, features in enumerate(teacher(batch).member_features):
        for name in flat_features(features, FLOAT32):
            whose = f"teacher `{config.teachers[number]}`: " if len(config.teachers) > 1 else ""
            context.warn(whose + _says_nothing(name, len(rows)))


def _says_nothing(name: str, samples: int) -> str:
    return (
        f"`{name}` is the same for all of {samples} samples: whoever learns from it learns nothing; look at the"
        " teacher's weights, and whether another of its outputs is meant"
    )
