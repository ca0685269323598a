"""FitNets (Romero et al. 2015, arXiv 1412.6550): a student's feature, through a regressor, matches the teacher's."""

from torch import Tensor, nn

from raydistill.kinds.feature_methods import HintsConfig
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext


class Hints(Method):
    """Squared distance of the teacher's hint and the regressed feature of the student."""

    def __init__(self, config: HintsConfig, context: MethodContext) -> None:
        super().__init__()
        student, teacher = context.both()
        self.reduction = config.reduction
        self.student_features = (config.student_feature or middle_stage(student, "student_feature"),)
        self.teacher_features = (config.teacher_feature or middle_stage(teacher, "teacher_feature"),)
        (guided,), (hint,) = (
            student.shapes(self.student_features),
            teacher.shapes(self.teacher_features),
        )
        build = build_toolbox_regressor if config.regressor == "toolbox" else build_regressor
        self.regressor = build(tuple(guided), tuple(hint))

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        guided = self.regressor(student.features[self.student_features[0]].float())
        squares = (guided - teacher.features[self.teacher_features[0]].float()).square()
        if self.reduction == "mean":
            return {"hint": squares.mean()}
        return {"hint": squares.flatten(1).sum(dim=1).mean() / 2}


def middle_stage(features: Features, key: str) -> str:
    """The network's middle stage; `ValueError` asks for a name where the network has no stages."""
    stages = features.stages_unless(key)
    return stages[(len(stages) - 1) // 2]


def build_regressor(guided: tuple[int, ...], hint: tuple[int, ...]) -> nn.Module:
    """A regressor from a feature of shape `guided` to one of shape `hint`, followed by ReLU as the hint is.

    Maps: a convolution without padding whose kernel takes the larger student's map to the teacher's (arXiv 1412.6550,
    section 2.2), or a transposed one if the student's map is smaller. Flat features: a linear layer.
    """
    if len(guided) == len(hint) == 1:
        return nn.Sequential(nn.Linear(guided[0], hint[0]), nn.ReLU())
    if len(guided) != 3 or len(hint) != 3:
        raise ValueError(f"a hint of shape {hint} does not fit a feature of shape {guided}; name others")
    steps = guided[1] - hint[1], guided[2] - hint[2]
    if all(step >= 0 for step in steps):
        kernel = (steps[0] + 1, steps[1] + 1)
        return nn.Sequential(nn.Conv2d(guided[0], hint[0], kernel), nn.ReLU())
    if all(step <= 0 for step in steps):
        kernel = (1 - steps[0], 1 - steps[1])
        return nn.Sequential(nn.ConvTranspose2d(guided[0], hint[0], kernel), nn.ReLU())
    raise ValueError(
        f"a map of {guided[1:]} does not fit into one of {hint[1:]}; name features of like shapes"
    )


def build_toolbox_regressor(guided: tuple[int, ...], hint: tuple[int, ...]) -> nn.Module:
    """The regressor of RepDistiller between maps: a small convolution, batch norm, ReLU."""
    if len(guided) != 3 or len(hint) != 3:
        raise ValueError(
            f"the toolboxes' regressor is one of maps, not of features of shape {guided} and {hint}; leave `regressor`"
            " out, or name others"
        )
    grid, aim = guided[1:], hint[1:]
    kernel: nn.Module
    if grid == (2 * aim[0], 2 * aim[1]):
        kernel = nn.Conv2d(guided[0], hint[0], 3, stride=2, padding=1)
    elif aim == (2 * grid[0], 2 * grid[1]):
        kernel = nn.ConvTranspose2d(guided[0], hint[0], 4, stride=2, padding=1)
    elif grid[0] >= aim[0] and grid[1] >= aim[1]:
        kernel = nn.Conv2d(guided[0], hint[0], (1 + grid[0] - aim[0], 1 + grid[1] - aim[1]))
    else:
        raise ValueError(
            f"the toolboxes' regressor does not take a map of {grid} to one of {aim}; leave `regressor` out, or name"
            " others"
        )
    return nn.Sequential(kernel, nn.BatchNorm2d(hint[0]), nn.ReLU())
