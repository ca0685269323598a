"""SRRL (Yang et al., ICLR 2021): the student's maps through the teacher's classifier give the teacher's logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.classifier_methods import SoftmaxRegressionConfig
from raydistill.methods.classifiers import last_maps, means, pooled_classifier
from raydistill.methods.features import check_maps
from raydistill.models.layers import LoneBatchNorm2d, initialise_convolutions
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method, MethodContext


class SoftmaxRegression(Method):
    """Mean squared differences of pooled maps, and of what the teacher's classifier makes of them."""

    def __init__(self, config: SoftmaxRegressionConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        student, teacher = context.both()
        own = config.student_feature or last_maps(student, "student_feature")
        aim = config.teacher_feature or last_maps(teacher, "teacher_feature")
        self.student_features, self.teacher_features = (own,), (aim,)
        # The teacher's own layer, not one of the method: a tuple registers nothing.
        self.classifier = (pooled_classifier(teacher, aim, config.method, "teacher_feature"),)
        check_maps(config.method, student, (own,), "student_feature")
        target = self.classifier[0].in_features
        self.connector = nn.Sequential(
            nn.Conv2d(student.shapes([own])[0][0], target, 1, bias=False), LoneBatchNorm2d(target), nn.ReLU()
        )
        initialise_convolutions(self.connector)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        with torch.autocast(student.logits.device.type, enabled=False):
            own = means(self.connector(student.features[self.student_features[0]].float()))
            aim = means(teacher.features[self.teacher_features[0]].detach().float())
            return regression_losses(own, aim, self.classifier[0], self.config)


def regression_losses(
    own: Tensor, aim: Tensor, classifier: nn.Linear, config: SoftmaxRegressionConfig
) -> dict[str, Tensor]:
    """Terms of pooled maps (B, C) of both; those of no weight are left out. The classifier is a constant."""
    terms = {}
    if config.feature_weight > 0:
        terms["features"] = config.feature_weight * F.mse_loss(own, aim)
    if config.regression_weight > 0:
        weight, bias = classifier.weight.detach(), classifier.bias
        constant = None if bias is None else bias.detach()
        logits, wanted = (F.linear(part, weight, constant) for part in (own, aim))
        terms["regression"] = config.regression_weight * F.mse_loss(logits, wanted)
    return terms
