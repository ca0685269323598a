"""Triplet distillation (Feng et al. 2019, arXiv 1905.04457): the teacher's distances set the margins."""

import torch
from torch import Tensor

from raydistill.kinds.relation_methods import TripletConfig
from raydistill.methods.embedding import EmbeddingMethod
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import MethodContext


class Triplet(EmbeddingMethod):
    """Batch-hard triplet loss on the student's embedding, with a margin for each triplet."""

    def __init__(self, config: TripletConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.config = config

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        own, other = (unit_vectors(vectors) for vectors in self.embeddings(student, teacher))
        positives, negatives, is_valid = hardest_triplets(own.detach(), batch.labels)
        with torch.no_grad():
            gaps = squared_distances(other, other[negatives]) - squared_distances(other, other[positives])
            margins = teacher_margins(gaps * is_valid, self.config.min_margin, self.config.max_margin)
        near, far = squared_distances(own, own[positives]), squared_distances(own, own[negatives])
        hinge = (near - far + margins).relu() * is_valid
        return {"triplet": hinge.sum() / is_valid.sum().clamp(min=1)}


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors (B, d) divided by their L2 norm; a zero vector stays zero, and its gradient stays finite."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norm.masked_fill(norm == 0, 1)


def hardest_triplets(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per anchor (B,): the farthest other sample of its class, the nearest of another class, and whether both exist.

    embeddings (B, d) of unit length, labels (B,).
    """
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        similarity = embeddings @ embeddings.mT
    is_same = labels[:, None] == labels
    is_positive = is_same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positives = similarity.masked_fill(~is_positive, torch.inf).argmin(dim=1)
    negatives = similarity.masked_fill(is_same, -torch.inf).argmax(dim=1)
    return positives, negatives, is_positive.any(dim=1) & ~is_same.all(dim=1)


def teacher_margins(gaps: Tensor, min_margin: float, max_margin: float) -> Tensor:
    """F(d) of the gaps 𝒯(a,n) - 𝒯(a,p) of a batch, (B,): `min_margin` at d = 0 up to `max_margin` at the largest d."""
    gaps = gaps.clamp(min=0)
    largest = gaps.max()
    return min_margin + (max_margin - min_margin) * gaps / largest.masked_fill(largest == 0, 1)


def squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """‖one - other‖² row by row, (B, d) → (B,)."""
    return (one - other).square().sum(dim=1)
