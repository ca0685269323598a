"""Losses on logits, in float32 or better whatever the network computed in: sums over classes, means over the batch."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.targets.mixing import TeacherTargets, tempered, tempered_probabilities
from raydistill.tasks.labels import UNLABELLED
from raydistill.training.balance import Balance
from raydistill.training.data import Batch

NEVER = -1e9  # a logarithm whose exponential is 0


def soft_loss(
    student_logits: Tensor,
    teacher: TeacherTargets,
    temperature: float,
    *,
    scale_by_temperature_squared: bool = True,
    reduction: Literal["batchmean", "none"] = "batchmean",
) -> Tensor:
    """T² · KL(p̄^T ‖ q^T), the teachers' mean tempered probabilities against the student's (arXiv 1503.02531, eq. 1).

    student_logits (B, C). With one teacher the gradient in z is T · (q^T - p^T) / B. Zero means a perfect match.
    With the reduction `none` the result is (B,), one divergence per sample. A class to which a teacher gives the logit
    -inf costs nothing, whatever the student says; one that the student alone excludes costs infinity.
    """
    student = F.log_softmax(tempered(student_logits, temperature), dim=-1)
    target = tempered_probabilities(teacher, temperature).detach()
    divergence = apart(student, target, reduction)
    if reduction == "none":
        divergence = divergence.sum(dim=-1)
    return (divergence * temperature**2 if scale_by_temperature_squared else divergence).float()


def apart(student: Tensor, target: Tensor, reduction: Literal["batchmean", "none"] = "batchmean") -> Tensor:
    """KL(p ‖ q), or its terms (B, C), of log q and p (B, C): 0 where p is, also for q = 0."""
    # As `F.kl_div` has it, which `torch.func.vmap` does not know.
    pointwise = torch.xlogy(target, target) - target * torch.where(target == 0, 0.0, student)
    return pointwise if reduction == "none" else pointwise.sum() / len(pointwise)


def hard_loss(student_logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels at T = 1; under mixup with both samples' labels in proportion.

    The mean over the samples that have a label; 0 where none has. Where the classes are balanced, each sample's loss
    has its label's weight, and logits are shifted first. A binary one is `binary_losses`.
    """
    balance = batch.balance or Balance()
    logits = student_logits.float() if balance.shift is None else student_logits.float() + balance.shift
    if balance.is_binary:
        losses = binary_losses(logits, batch, balance, label_smoothing)
    elif batch.label_weights is None and batch.partner_labels is None and balance.weights is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    else:
        losses = over_labels(
            lambda labels: F.cross_entropy(
                logits,
                labels,
                balance.weights,
                reduction="none",
                label_smoothing=label_smoothing,
                ignore_index=UNLABELLED,
            ),
            batch,
        )
    return (losses if batch.label_weights is None else batch.label_weights * losses).mean()


def binary_losses(logits: Tensor, batch: Batch, balance: Balance, label_smoothing: float) -> Tensor:
    """(B,): the mean over classes of the binary cross-entropy of logits (B, C) with the labels (arXiv 2110.00476), in
    the proportion of a mixture or all 1 above a threshold, then smoothed; times the labels' weights in proportion.

    What has no label is asked about class 0: it has no weight in the batch.
    """

    def one_hot(labels: Tensor) -> Tensor:
        classes = torch.arange(logits.shape[1], device=logits.device)
        return (labels.clamp(min=0).unsqueeze(1) == classes).to(logits.dtype)

    targets = over_labels(one_hot, batch)
    if balance.threshold is not None:
        targets = (targets > balance.threshold).to(logits.dtype)
    smoothed = (1 - label_smoothing) * targets + label_smoothing / logits.shape[1]
    losses = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none").mean(dim=1)
    if (weights := balance.weights) is None:
        return losses
    return losses * over_labels(lambda labels: weights[labels.clamp(min=0)], batch)


def over_labels(term: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """What `term` says for labels (B,), a value or row per sample; under mixup of both labels in proportion."""
    if batch.partner_labels is None or batch.weights is None:
        return term(batch.labels)
    own, partner = term(batch.labels), term(batch.partner_labels)
    return torch.lerp(partner, own, batch.weights.to(own.dtype).view(-1, *[1] * (own.dim() - 1)))


def divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(v/T) ‖ softmax(z/T)) of logits (B, C), whose gradient reaches both unless one is detached."""
    student = F.log_softmax(tempered(student_logits, temperature), dim=-1)
    teacher = F.log_softmax(tempered(teacher_logits, temperature), dim=-1)
    return (divergence_terms(student, teacher).sum() / len(student) * temperature**2).float()


def divergence_terms(student: Tensor, teacher: Tensor) -> Tensor:
    """p · (log p - log q) of log-probabilities log q (..., C) and log p (..., C): 0 where p is, also for q = 0."""
    probabilities = teacher.exp()
    never = probabilities == 0  # chosen before the product: a product with infinity spoils the gradient
    return probabilities * (torch.where(never, 0.0, teacher) - torch.where(never, 0.0, student))


def of_label(logs: Tensor, labels: Tensor) -> Tensor:
    """The label's entry of each row, (B,) from (B, C)."""
    return logs.gather(1, labels.unsqueeze(1)).squeeze(1)


def without_label(logs: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities (B, C) over the classes other than the label, which gets none.

    What stands in the label's place is finite, or a row in which no other class has any would be no number.
    """
    return F.log_softmax(logs.scatter(1, labels.unsqueeze(1), NEVER), dim=1)


def log_rest(logs: Tensor, labels: Tensor) -> Tensor:
    """log(1 - p_y), (B,), from log-probabilities (B, C): exact also where p_y is rounded to 1."""
    return torch.logsumexp(logs.scatter(1, labels.unsqueeze(1), NEVER), dim=1)


def other_divergence(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL(p̂ ‖ q̂), (B,), of the distributions over the classes other than the label, from log-probabilities (B, C)."""
    return divergence_terms(without_label(student, labels), without_label(teacher, labels)).sum(dim=1)
