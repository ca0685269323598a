"""What methods that compare features have in common: grids, lengths, and pairs of layers."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.map_methods import MapsOptions
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.method import Features, Method, MethodContext

SHORT = 1e-6  # the length below which a vector has no direction


def direction(vectors: Tensor) -> Tensor:
    """Vectors (..., d) of length 1; those of no length stay, with a slope of ordinary size."""
    squares = vectors.square().sum(dim=-1, keepdim=True)
    return vectors / torch.where(squares > SHORT**2, squares, 1).sqrt()


def levelled(values: Tensor, *dims: int) -> Tensor:
    """Divided by the largest magnitude over some dimensions, a constant: for what is blind to scale, but squares."""
    largest = values.detach().abs().amax(dim=dims, keepdim=True)
    return values / torch.where(largest > SHORT, largest, 1)


def shrink_to_match(own: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) and (B, C', H', W') averaged to the smaller height and the smaller width of both."""
    size = min(own.shape[2], aim.shape[2]), min(own.shape[3], aim.shape[3])
    return _pooled(own, size), _pooled(aim, size)


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)


class MapsMethod(Method):
    """A method that compares the maps of pairs of layers, the first with the first."""

    def __init__(self, config: MapsOptions, context: MethodContext) -> None:
        super().__init__()
        student, teacher = context.both()
        self.student_features = config.student_features or student.stages_unless("student_features")
        self.teacher_features = config.teacher_features or teacher.stages_unless("teacher_features")
        check_paired(config.method, self.student_features, self.teacher_features)
        check_maps(config.method, student, self.student_features, "student_features")
        check_maps(config.method, teacher, self.teacher_features, "teacher_features")

    def pairs(self, student: Output, teacher: TeacherTargets | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The student's and the teacher's maps of each pair on one grid, float32; the teacher's are constants."""
        assert teacher is not None
        for own, aim in zip(self.student_features, self.teacher_features, strict=True):
            yield shrink_to_match(student.features[own].float(), teacher.features[aim].detach().float())


def check_paired(method: str, own: Sequence[str], aims: Sequence[str]) -> None:
    """`ValueError` unless there are as many features of the one network as of the other."""
    if len(own) != len(aims):
        raise ValueError(
            f"`{method}` pairs the student's features with the teacher's, but there are {len(own)} and {len(aims)};"
            " name as many in `student_features` and `teacher_features`"
        )


def check_maps(method: str, features: Features, names: Sequence[str], key: str) -> None:
    """`ValueError` for a feature that is no map (C, H, W); it is named in the setting `key`."""
    for name, shape in zip(names, features.shapes(names), strict=True):
        if len(shape) != 3:
            raise ValueError(
                f"`{method}` compares maps of (channels, height, width); `{name}` has the shape {tuple(shape)}; name"
                f" others in `{key}`"
            )
