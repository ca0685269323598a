"""SP (Tung and Mori, ICCV 2019, arXiv 1907.09682): what looks alike to the teacher looks alike to the student."""

from torch import Tensor

from raydistill.methods.embedding import EmbeddingMethod
from raydistill.methods.features import direction, levelled
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch


class SimilarityPreserving(EmbeddingMethod):
    """Mean squared difference of the two networks' row-normalised similarities."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        own, aim = map(similarities, self.embeddings(student, teacher))
        return {"similarity": (own - aim).square().mean()}


def similarities(features: Tensor) -> Tensor:
    """Inner products of samples, each row divided by its length, (B, B) from features (B, d).

    A row has the same direction whatever the length of its own sample, so that none is lost for being small.
    """
    return direction(direction(levelled(features, 1)) @ levelled(features, 0, 1).mT)
