"""A generalist and its specialists that answer as one: only those are run that the generalist calls for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.targets.fusion import Direction, fuse
from raydistill.targets.membership import Head, active_specialists, build_membership
from raydistill.training.model_files import TrainedModel
from raydistill.training.pieces import logits_by_pieces


class FusedAnswer(NamedTuple):
    """Fused `log_probabilities` (B, C), and which specialists were `active` (B, M)."""

    log_probabilities: Tensor
    active: Tensor


class Committee:
    """Specialists that know clusters of the classes of a generalist with `num_classes` outputs.

    `active`: the specialists of the generalist's so many most probable classes are asked.
    """

    def __init__(
        self,
        specialists: Sequence[TrainedModel],
        names: Sequence[str],
        generalist_names: Sequence[str],
        *,
        active: int,
        direction: Direction,
        device: str,
    ) -> None:
        self.models = [specialist.model for specialist in specialists]
        self.active, self.direction = active, direction
        facts = [_facts(specialist, name) for specialist, name in zip(specialists, names, strict=True)]
        for specialist, (classes, head), name in zip(specialists, facts, names, strict=True):
            _check_names(specialist, classes, head, generalist_names, name)
        class_sets, heads = zip(*facts, strict=True)
        self.membership = build_membership(class_sets, len(generalist_names), heads).to(device)

    @torch.no_grad()
    def answer(self, inputs: Tensor, generalist_logits: Tensor) -> FusedAnswer:
        """The fused answer on normalised inputs (B, ...), of which the generalist gave `generalist_logits` (B, C)."""
        generalist = torch.log_softmax(generalist_logits.float(), dim=-1)
        active = self.called(generalist_logits)
        answers = [self._ask(model, inputs, active[:, index]) for index, model in enumerate(self.models)]
        return FusedAnswer(
            fuse(generalist, answers, active, self.membership, direction=self.direction), active
        )

    def called(self, generalist_logits: Tensor) -> Tensor:
        """Which specialists (B, M) the generalist's logits (B, C) call for."""
        log_probabilities = torch.log_softmax(generalist_logits.float(), dim=-1)
        return active_specialists(log_probabilities, self.membership, self.active)

    def logits(self, generalist: TrainedModel, inputs: Tensor) -> Tensor:
        """Fused log-probabilities (B, C) of raw inputs (B, ...)."""
        return self.answer(generalist.prepared(inputs), generalist.logits(inputs)).log_probabilities

    @staticmethod
    def _ask(model: torch.nn.Module, inputs: Tensor, is_asked: Tensor) -> Tensor | None:
        if not is_asked.any():
            return None
        return torch.log_softmax(logits_by_pieces(model, inputs[is_asked]).float(), dim=-1)


def _facts(specialist: TrainedModel, name: str) -> tuple[list[int], Head]:
    """The classes that a specialist knows, and its head."""
    facts = specialist.description.get("specialist")
    if facts is None:
        raise StageError(f"`{name}` is no specialist: its model does not say which classes it knows")
    return facts["classes"], facts["head"]


def _check_names(
    specialist: TrainedModel, classes: Sequence[int], head: Head, generalist_names: Sequence[str], name: str
) -> None:
    """The specialist means the same classes as the generalist."""
    outputs = classes if head == "full" else range(len(classes))
    own = [specialist.class_names[output] for output in outputs]
    if max(classes) >= len(generalist_names) or own != [generalist_names[label] for label in classes]:
        raise StageError(
            f"`{name}` and the generalist do not have the same classes; train it from this generalist"
        )
