"""CAT-KD (Guo et al., CVPR 2023, arXiv 2304.12777): the student sees each class where the teacher does."""

import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.classifier_methods import ClassAttentionConfig
from raydistill.methods.classifiers import check_grid, class_maps, last_maps, pooled_classifier
from raydistill.methods.features import direction
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext


class ClassAttention(Method):
    """Mean squared difference of the two networks' maps of classes."""

    def __init__(self, config: ClassAttentionConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        student, teacher = context.both()
        own = config.student_feature or last_maps(student, "student_feature")
        aim = config.teacher_feature or last_maps(teacher, "teacher_feature")
        self.student_features, self.teacher_features = (own,), (aim,)
        # Layers of the networks, not of the method: a tuple registers nothing.
        self.classifiers = (
            self._classifier(student, own, "student_feature"),
            self._classifier(teacher, aim, "teacher_feature"),
        )
        counts = [classifier.out_features for classifier in self.classifiers]
        if counts[0] != counts[1]:
            raise ValueError(
                f"`class_attention` compares the maps of the same classes, and the student has {counts[0]}, the"
                f" teacher's classifier {counts[1]}; take `softmax_regression`"
            )

    def _classifier(self, features: Features, name: str, key: str) -> nn.Linear:
        classifier = pooled_classifier(features, name, self.config.method, key)
        check_grid(features.shapes([name])[0], self.config.places, name)
        return classifier

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        own, aim = self.classifiers
        sides = (
            self._seen(student.features[self.student_features[0]].float(), own.weight),
            self._seen(teacher.features[self.teacher_features[0]].detach().float(), aim.weight.detach()),
        )
        return {"class_maps": F.mse_loss(*sides)}

    def _seen(self, maps: Tensor, weight: Tensor) -> Tensor:
        seen = class_maps(maps, weight.float(), self.config.places)
        return direction(seen) if self.config.normalize else seen
