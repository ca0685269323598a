"""PKT (Passalis and Tefas, ECCV 2018, arXiv 1803.10837): who is whose neighbour, as probabilities."""

from torch import Tensor

from raydistill.methods.embedding import EmbeddingMethod
from raydistill.methods.features import direction, levelled
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

SMALL = 1e-7  # added to both probabilities, as published


class ProbabilisticTransfer(EmbeddingMethod):
    """KL of the teacher's probabilities of neighbours from the student's, over the square of the batch."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        own, aim = map(neighbours, self.embeddings(student, teacher))
        return {"neighbours": (aim * ((aim + SMALL) / (own + SMALL)).log()).mean()}


def neighbours(features: Tensor) -> Tensor:
    """P(j | i) ∝ (cos(f_i, f_j) + 1) / 2 at [i, j], itself included: (B, B) from features (B, d)."""
    units = direction(levelled(features, 1))
    alike = (units @ units.mT + 1) / 2
    # Above 0: with itself, every sample is alike.
    return alike / alike.sum(dim=1, keepdim=True)
