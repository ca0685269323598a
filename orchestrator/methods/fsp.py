"""FSP (Yim, Joo, Bae, Kim, CVPR 2017): the flow from one layer to a later one, as a Gram matrix of the two."""

from itertools import chain, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.feature_methods import FspConfig
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext

Pairs = tuple[tuple[str, str], ...]


class Fsp(Method):
    """Squared Frobenius distance between the student's and the teacher's flow matrices."""

    def __init__(self, config: FspConfig, context: MethodContext) -> None:
        super().__init__()
        student, teacher = context.both()
        self.pool, self.reduction = config.pool, config.reduction
        has_stem = student.has("stem") and teacher.has("stem")
        self.student_pairs = config.student_pairs or _sections(student, has_stem=has_stem)
        self.teacher_pairs = (
            config.teacher_pairs or config.student_pairs or _sections(teacher, has_stem=has_stem)
        )
        self.student_features = tuple(dict.fromkeys(chain(*self.student_pairs)))
        self.teacher_features = tuple(dict.fromkeys(chain(*self.teacher_pairs)))
        _check_channels(student, self.student_pairs, teacher, self.teacher_pairs)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        total = student.logits.new_zeros((), dtype=torch.float32)
        for own, other in zip(self.student_pairs, self.teacher_pairs, strict=True):
            flow = flow_matrix(student.features[own[0]], student.features[own[1]], self.pool)
            aim = flow_matrix(teacher.features[other[0]], teacher.features[other[1]], self.pool)
            squares = (aim - flow).square()
            total = total + (squares.mean() if self.reduction == "mean" else squares.sum(dim=(1, 2)).mean())
        return {"flow": total}


def flow_matrix(first: Tensor, second: Tensor, pool: Literal["max", "average"] = "max") -> Tensor:
    """G (B, m, n) float32 of maps (B, m, h, w) and (B, n, h', w'), the larger one pooled to the smaller grid.

    G_ij = Σ over places of first_i · second_j / (h · w), in float32: with many channels float16 would overflow.
    """
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    shrink = F.adaptive_max_pool2d if pool == "max" else F.adaptive_avg_pool2d
    with torch.autocast(first.device.type, enabled=False):
        # A map that has the grid already is not pooled: adaptive pooling by one is slow.
        fitted = [
            part.float() if part.shape[2:] == size else shrink(part.float(), size) for part in (first, second)
        ]
        return fitted[0].flatten(2) @ fitted[1].flatten(2).mT / (size[0] * size[1])


def _sections(features: Features, *, has_stem: bool) -> Pairs:
    """One pair for each size of maps: the paper's groups begin at the first layer (section 4.1)."""
    named = ("stem", *features.stages) if has_stem else features.stages
    if len(named) < 2:
        raise ValueError(
            "the model names fewer than two stages; write the pairs of features as `student_pairs`"
        )
    return tuple(pairwise(named))


def _check_channels(student: Features, student_pairs: Pairs, teacher: Features, teacher_pairs: Pairs) -> None:
    if len(student_pairs) != len(teacher_pairs):
        raise ValueError(
            f"{len(student_pairs)} pairs of the student for {len(teacher_pairs)} of the teacher; FSP needs as many"
        )
    for own, other in zip(chain(*student_pairs), chain(*teacher_pairs), strict=True):
        (shape,), (aim,) = student.shapes([own]), teacher.shapes([other])
        if len(shape) != 3 or len(aim) != 3:
            raise ValueError(
                f"FSP compares maps of (channels, height, width); `{own}` has the shape {tuple(shape)}"
            )
        if shape[0] != aim[0]:
            raise ValueError(
                f"FSP needs equal channels: the student's `{own}` has {shape[0]}, the teacher's `{other}` has {aim[0]};"
                " choose other pairs, or another student"
            )
