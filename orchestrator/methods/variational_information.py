"""VID (Ahn et al., CVPR 2019, arXiv 1904.05835): a Gaussian around what the student predicts of the teacher's maps."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.connector_methods import VariationalInformationConfig
from raydistill.methods.features import MapsMethod
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import MethodContext

FIRST, LEAST = 5.0, 1e-3  # variances: a constant channel would else pull with 100,000 times its error
SPREAD_START = math.log(math.expm1(FIRST - LEAST))


class VariationalInformation(MapsMethod):
    """Negative log-likelihood of the teacher's maps, less a constant, summed over pairs of layers."""

    def __init__(self, config: VariationalInformationConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        student, teacher = context.both()
        own, aims = student.shapes(self.student_features), teacher.shapes(self.teacher_features)
        self.regressors = nn.ModuleList(
            _regressor(shape[0], aim[0]) for shape, aim in zip(own, aims, strict=True)
        )
        self.spreads = nn.ParameterList(torch.full((aim[0],), SPREAD_START) for aim in aims)
        self.seen: dict[str, Tensor] = {}

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        terms, errors, variances = [], [], []
        with torch.autocast(student.logits.device.type, enabled=False):
            pairs = zip(self.regressors, self.spreads, self.pairs(student, teacher), strict=True)
            for regress, spread, (own, aim) in pairs:
                variance = F.softplus(spread) + LEAST
                squares = F.mse_loss(regress(own), aim, reduction="none").mean(dim=(0, 2, 3))
                terms.append(unlikelihood(squares, variance))
                errors.append(squares.detach().mean())
                variances.append(variance.detach().mean())
        self.seen = {"error": torch.stack(errors).mean(), "variance": torch.stack(variances).mean()}
        return {"information": torch.stack(terms).sum()}

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Decay would pull a variance to 0.69."""
        return self.spreads

    def observations(self) -> dict[str, Tensor]:
        return self.seen


def unlikelihood(squares: Tensor, variance: Tensor) -> Tensor:
    """Mean over channels of ½ (MSE / σ² + ln σ²), from mean squares (C,) and variances (C,)."""
    return (squares / variance + variance.log()).mean() / 2


def _regressor(channels: int, target: int) -> nn.Sequential:
    first, second, third = (nn.Conv2d(size, target, 1, bias=False) for size in (channels, target, target))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
