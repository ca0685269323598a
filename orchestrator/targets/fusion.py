"""KL fusion: one distribution from a generalist and specialists (arXiv 1503.02531, section 5.4).

The fused q minimises w_g KL(p^g ‖ q) + Σ_m w_m KL(p^m ‖ A_m q) over the active specialists m, A_m q being q as
specialist m sees it: its own classes, and the sum of all others as its dustbin. Fuse at T = 1 and temper log q
afterwards: a tempered dustbin is not the sum of tempered classes.

Specialists answer only for the images that call for them, so their outputs come without the others. Images go
through in blocks that have equally many active dustbins; a block needs memory of its images x classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.targets.fusion_cells import BITS, ForwardCells, ReverseCells, number_cells
from raydistill.targets.membership import Membership, build_membership

Direction = Literal["forward", "reverse"]

SMALLEST = 1e-12  # a probability of 0 would stay 0 whatever the specialists say
BLOCK_ELEMENTS = 1 << 19
PRIOR = 1e-6  # of all weight: settles how a dustbin is shared by classes that no teacher knows


def fuse(
    generalist_log_probabilities: Tensor,
    specialist_log_probabilities: Sequence[Tensor | None],
    active: Tensor,
    membership: Membership,
    *,
    weights: Sequence[float] | None = None,
    direction: Direction = "forward",
    tolerance: float = 1e-6,
) -> Tensor:
    """log q (B, C), in the generalist's type or float32 if that is smaller.

    Item m of `specialist_log_probabilities` holds, in the order of the images, the outputs for those with
    `active[:, m]`; None if there are none. `weights` are the generalist's and the specialists', M + 1 numbers above
    0; None means 1 each. An image without active specialists gets the generalist's row as it is. `tolerance` is the
    L1 change of q that ends the iteration. Raises `StageError` where the parts do not fit together.
    """
    committee = _Committee.build(
        generalist_log_probabilities, specialist_log_probabilities, active, membership, weights
    )
    fused = generalist_log_probabilities.to(
        torch.promote_types(generalist_log_probabilities.dtype, torch.float32), copy=True
    )
    for rows, slots in committee.blocks():
        fused[rows] = _fuse_rows(committee, rows, slots, direction, tolerance).to(fused.dtype)
    return fused


def fuse_partial(
    logits: Tensor, known: Sequence[Sequence[int] | None], weights: Sequence[float] | None = None
) -> Tensor:
    """log q (B, C) of M teachers who each know a part of the classes, from logits (B, M, C).

    q minimises Σ_m w_m KL(p^m ‖ A_m q): teacher m teaches the classes that it has in `known`, or all for None; its
    probability of the others is a dustbin, however it is spread over them. Where no teacher tells classes apart, they
    are equally likely. Raises `StageError` as `fuse` does.
    """
    count, num_classes = logits.shape[1:]
    logs = torch.log_softmax(logits.double(), dim=-1)
    membership = build_membership(
        [range(num_classes) if classes is None else classes for classes in known],
        num_classes,
        ["full" if classes is None else "dustbin" for classes in known],
    ).to(logits.device)
    answers: list[Tensor | None] = []
    for teacher, inside in enumerate(membership.members):
        own = logs[:, teacher]
        if known[teacher] is not None:
            rest = own.masked_fill(inside, -torch.inf).logsumexp(dim=-1, keepdim=True)
            own = torch.cat([own[:, membership.class_sets[teacher]], rest], dim=-1)
        answers.append(own)
    shares = (1 / count,) * count if weights is None else weights
    everybody = logits.new_ones(len(logits), count, dtype=torch.bool)
    prior = torch.full_like(logs[:, 0], -math.log(num_classes))
    return fuse(prior, answers, everybody, membership, weights=(PRIOR, *shares))


class _Answer(NamedTuple):
    """What a specialist says about some images of a block: their places in it (k,), `probabilities` (k, columns)."""

    specialist: int
    weight: float
    places: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class _Committee:
    """The arguments of `fuse`, checked; `positions` (B, M) says where an image is among a specialist's outputs."""

    generalist: Tensor
    specialists: Sequence[Tensor | None]
    active: Tensor
    positions: Tensor
    membership: Membership
    weights: tuple[float, ...]

    @classmethod
    def build(
        cls,
        generalist: Tensor,
        specialists: Sequence[Tensor | None],
        active: Tensor,
        membership: Membership,
        weights: Sequence[float] | None,
    ) -> "_Committee":
        count, num_classes = membership.members.shape
        if generalist.ndim != 2 or generalist.shape[1] != num_classes:
            raise StageError(
                f"the generalist's output has shape {tuple(generalist.shape)}, "
                f"but the specialists divide {num_classes} classes"
            )
        if active.shape != (len(generalist), count):
            raise StageError(f"`active` has shape {tuple(active.shape)}, not {(len(generalist), count)}")
        if generalist.isnan().any():
            raise StageError("the generalist answered with something that is not a number")
        _check_outputs(specialists, active, membership)
        return cls(
            generalist,
            specialists,
            active,
            active.cumsum(dim=0) - 1,
            membership,
            _checked_weights(weights, count + 1),
        )

    def blocks(self) -> Iterator[tuple[Tensor, int]]:
        """Images (b,) that have active specialists, in blocks with equally many dustbins, and that number."""
        has_dustbin = torch.tensor(
            [head == "dustbin" for head in self.membership.heads], device=self.active.device
        )
        counts = (self.active & has_dustbin).sum(dim=1)
        counts = torch.where(self.active.any(dim=1), counts, -1)
        sizes = sorted((len(classes) for classes in self.membership.class_sets), reverse=True)
        for slots in counts.unique().tolist():
            if slots >= 0:
                cells = min(2**slots, sum(sizes[:slots]) + 1)
                size = BLOCK_ELEMENTS // max(self.membership.num_classes, cells * slots)
                for rows in (counts == slots).nonzero().squeeze(1).split(max(1, size)):
                    yield rows, slots

    def generalist_probabilities(self, rows: Tensor) -> Tensor:
        return _probabilities(self.generalist[rows], "the generalist")

    def answers(self, rows: Tensor) -> Iterator[_Answer]:
        active, positions = self.active[rows], self.positions[rows]
        for specialist, outputs in enumerate(self.specialists):
            places = active[:, specialist].nonzero().squeeze(1)
            if outputs is not None and len(places):
                own = outputs[positions[places, specialist]]
                probabilities = _probabilities(own, f"specialist {specialist}")
                yield _Answer(specialist, self.weights[specialist + 1], places, probabilities)


def _check_outputs(specialists: Sequence[Tensor | None], active: Tensor, membership: Membership) -> None:
    if len(specialists) != len(membership.heads):
        raise StageError(f"{len(specialists)} outputs were given for {len(membership.heads)} specialists")
    for specialist, count in enumerate(active.sum(dim=0).tolist()):
        outputs = specialists[specialist]
        shape = (0, membership.columns(specialist)) if outputs is None else tuple(outputs.shape)
        expected = (count, membership.columns(specialist))
        if shape != expected:
            raise StageError(
                f"specialist {specialist} is active on {count} images and has {expected[1]} outputs, "
                f"but {shape} numbers were given"
            )


def _checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * count
    if len(weights) != count:
        raise StageError(f"{len(weights)} weights were given for the generalist and {count - 1} specialists")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise StageError(f"weights of a fusion must be numbers above 0: {list(weights)}")
    return tuple(weights)


def _probabilities(logs: Tensor, source: str) -> Tensor:
    """Float64 probabilities of at least about 1e-12 that sum to 1."""
    probabilities = torch.softmax(logs.double(), dim=-1).clamp_(min=SMALLEST)
    sums = probabilities.sum(dim=-1, keepdim=True)
    if not sums.isfinite().all():
        raise StageError(f"{source} answered with something that is not a number")
    return probabilities.div_(sums)


def _fuse_rows(
    committee: _Committee, rows: Tensor, slots: int, direction: Direction, tolerance: float
) -> Tensor:
    """log q (b, C) of images that have `slots` active dustbins each."""
    claims = _gather_claims(committee, rows, slots, direction)
    numbers, outside = number_cells(claims.patterns, slots)
    evidence = claims.evidence
    if direction == "reverse":
        cell_weights = claims.total - torch.matmul(outside, claims.weights.unsqueeze(-1)).squeeze(-1)
        evidence = evidence.div_(cell_weights.gather(1, numbers)).exp_()
    by_cell = evidence.new_zeros(len(rows), outside.shape[-2]).scatter_add_(1, numbers, evidence)
    kind = ForwardCells if direction == "forward" else ReverseCells
    masses = kind(by_cell, outside, claims.dustbins, claims.weights, claims.total).solve(tolerance)
    return evidence.log_().add_((masses / by_cell).log_().gather(1, numbers))


class _Claims(NamedTuple):
    """What the models say about a block of b images with A active dustbins each.

    evidence (b, C): the weighted sum of p (forward) or log p (reverse) over the models that know the class; bit a of
    patterns (planes, b, C): the class is in the set of the image's a-th dustbin; dustbins and weights (b, A);
    total (b, 1), the weights of all models.
    """

    evidence: Tensor
    patterns: Tensor
    dustbins: Tensor
    weights: Tensor
    total: Tensor


def _gather_claims(committee: _Committee, rows: Tensor, slots: int, direction: Direction) -> _Claims:
    evidence = committee.generalist_probabilities(rows)
    patterns = torch.zeros(
        max(1, -(-slots // BITS)), *evidence.shape, dtype=torch.int64, device=evidence.device
    )
    dustbins = evidence.new_ones(len(rows), slots)
    weights = evidence.new_ones(len(rows), slots)
    total = evidence.new_full((len(rows), 1), committee.weights[0])
    used = torch.zeros_like(rows)
    if direction == "reverse":
        evidence.log_()
    evidence *= committee.weights[0]
    for specialist, weight, places, probabilities in committee.answers(rows):
        total[places] += weight
        claims = weight * (probabilities.log() if direction == "reverse" else probabilities)
        if committee.membership.heads[specialist] == "full":
            evidence[places] += claims
            continue
        across, classes = places.unsqueeze(1), committee.membership.class_sets[specialist]
        slot = used[places]
        evidence[across, classes] += claims[:, :-1]
        patterns[(slot // BITS).unsqueeze(1), across, classes] += (1 << slot % BITS).unsqueeze(1)
        dustbins[places, slot] = probabilities[:, -1]
        weights[places, slot] = weight
        used[places] += 1
    return _Claims(evidence, patterns, dustbins, weights, total)
