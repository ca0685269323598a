"""A student that ends in its teacher's classifier: what its stage can be told."""

from typing import Annotated

from pydantic import Field, model_validator

from raydistill.kinds.online import check_plain
from raydistill.kinds.stage_bases import TrainingConfig, WeightsConfig
from raydistill.plan.config import Integer, ModelRef, StageRef
from raydistill.plan.model import ModelConfig


class ReuseClassifierConfig(WeightsConfig, TrainingConfig):
    """Train a student whose last maps become its teacher's, and end it in the teacher's classifier (SimKD, Chen et al.
    2022, arXiv 2203.14001).

    A projector of 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU, brings the student's last maps to the
    teacher's channels by way of `factor` times fewer; loss = the mean of (projected - teacher's)² over samples,
    channels and places, the larger grid pooled to the smaller. No label is looked at. What is behind these maps in the
    teacher stands behind the projector, with its weights, and is not trained.

    The stored model is all of it, a `reused_head`, which needs no teacher any more: compare its parameters, projector
    included, with those of other students. The student's own classifier is left out; the classes are the teacher's.
    Teacher and student are networks of ours; the teacher's last maps lie behind a ReLU in all of them. Of a teacher
    whose class bias was adjusted the classifier counts as it was before.

    Settings: `factor: 2` is the release's best.
    Published: CIFAR-100: ResNet-32x4 → ResNet-8x4 (73.09 alone, soft targets 74.42) with factors 8, 4 and 2: 76.73,
    77.88, 78.08 %.
    Pitfalls: the stored model has the projector in it: compare its parameters with those of other students.
    Releases: the student's own classifier stays in the model, at a loss of 0, and shrinks by weight decay.
    """

    word = "reuse_classifier"
    implementation = "raydistill.stages.reuse_classifier:reuse_classifier"
    has_teacher = True
    makes_students = True
    learns_unlabelled = True
    model_key = "student"

    student: ModelConfig
    """The network whose classifier the teacher's replaces."""
    teacher: ModelRef
    """Whose last maps it learns, and whose classifier it gets."""
    factor: Annotated[Integer, Field(ge=1, le=1024)] = 2
    """How much narrower the projector is than the teacher's maps."""

    @model_validator(mode="after")
    def _is_one_of_ours(self) -> "ReuseClassifierConfig":
        check_plain(self.student, "can end in another's classifier", "another's classifier", "student")
        return self

    @property
    def compares_features(self) -> bool:
        return True

    @property
    def taught_by(self) -> tuple[StageRef, ...]:
        return (self.teacher,)

    def role(self, *, teaches: bool, has_student: bool) -> str:
        return "assistant" if teaches else "student"

    def made_model(self) -> ModelConfig | None:
        return None
