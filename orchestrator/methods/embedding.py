"""The common part of methods that compare one embedding (B, d) of each network; the sizes may differ."""

from torch import Tensor

from raydistill.kinds.relation_methods import EmbeddingOptions
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.method import Features, Method, MethodContext


class EmbeddingMethod(Method):
    """A method that compares the relations of samples in two embeddings."""

    def __init__(self, config: EmbeddingOptions, context: MethodContext) -> None:
        super().__init__()
        student, teacher = context.both()
        _check_feature(student, config.student_feature, "student_feature")
        _check_feature(teacher, config.teacher_feature, "teacher_feature")
        self.student_features = (config.student_feature,)
        self.teacher_features = (config.teacher_feature,)

    def embeddings(self, student: Output, teacher: TeacherTargets | None) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's embeddings (B, d) and (B, d'), float32; the teacher's is a constant."""
        assert teacher is not None
        own = student.features[self.student_features[0]].float().flatten(1)
        return own, teacher.features[self.teacher_features[0]].detach().float().flatten(1)


def _check_feature(features: Features, name: str, key: str) -> None:
    try:
        features.shapes([name])
    except ValueError as error:
        raise ValueError(f"{error}; say which feature is meant with `{key}`") from error
