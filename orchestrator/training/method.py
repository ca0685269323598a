"""What a method is: it says what it needs, which modules it trains beside the student, and its named losses."""

from enum import Enum, auto
from typing import ClassVar

from torch import Tensor, nn

from models.taps import Output
from orchestrator.targets.mixing import TeacherTargets
from orchestrator.training.data import Batch


class Need(Enum):
    """What a method looks at besides the student's logits."""

    TEACHER_LOGITS = auto()


class Method(nn.Module):
    """A training objective. Submodules of a method (connectors, regressors) train with the student, are
    checkpointed with it, and are left out of the exported model."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        """Named terms of the loss, each a mean over the batch with its weight applied; the loop adds them up."""
        raise NotImplementedError
