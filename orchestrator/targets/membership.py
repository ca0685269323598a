"""Which classes each specialist knows, and which images call for it (arXiv 1503.02531, section 5.4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from raydistill.errors import StageError

Head = Literal["dustbin", "full"]


@dataclass(frozen=True)
class Membership:
    """Which classes each of M specialists knows: `class_sets` in the order of its outputs, `members` (M, C) bool.

    A head `dustbin` answers with the classes of its set and, last, all others together; a head `full` with all C.
    """

    class_sets: tuple[Tensor, ...]
    members: Tensor
    heads: tuple[Head, ...]

    @property
    def num_classes(self) -> int:
        return self.members.shape[1]

    def columns(self, specialist: int) -> int:
        """Length of the specialist's output."""
        has_dustbin = self.heads[specialist] == "dustbin"
        return len(self.class_sets[specialist]) + 1 if has_dustbin else self.num_classes

    def to(self, device: torch.device | str) -> "Membership":
        class_sets = tuple(classes.to(device) for classes in self.class_sets)
        return replace(self, class_sets=class_sets, members=self.members.to(device))


def build_membership(
    class_sets: Sequence[Sequence[int]], num_classes: int, heads: Sequence[Head] | None = None
) -> Membership:
    """Membership of specialists that know `class_sets`; heads are `dustbin` unless said otherwise.

    Raises `StageError` for a set that is empty, leaves a dustbin nothing, or names a class twice or one that does not
    exist.
    """
    if heads is None:
        heads = ["dustbin"] * len(class_sets)
    if len(heads) != len(class_sets):
        raise StageError(
            f"{len(heads)} heads were given for {len(class_sets)} specialists; give one for each"
        )
    members = torch.zeros(len(class_sets), num_classes, dtype=torch.bool)
    for specialist, (classes, head) in enumerate(zip(class_sets, heads, strict=True)):
        _check_classes(specialist, classes, num_classes, head)
        members[specialist, list(classes)] = True
    return Membership(tuple(torch.tensor(list(classes)) for classes in class_sets), members, tuple(heads))


def _check_classes(specialist: int, classes: Sequence[int], num_classes: int, head: Head) -> None:
    if not classes:
        raise StageError(f"specialist {specialist} has no classes")
    unknown = [label for label in classes if not 0 <= label < num_classes]
    if unknown:
        raise StageError(
            f"specialist {specialist} knows class {unknown[0]}, but classes go from 0 to {num_classes - 1}"
        )
    if len(set(classes)) < len(classes):
        twice = next(label for label in classes if list(classes).count(label) > 1)
        raise StageError(f"specialist {specialist} names class {twice} twice")
    if len(classes) == num_classes and head == "dustbin":
        raise StageError(
            f"specialist {specialist} has all {num_classes} classes, so nothing is left for its dustbin"
        )


def active_specialists(generalist_log_probabilities: Tensor, membership: Membership, n: int = 1) -> Tensor:
    """The specialists whose set has one of the generalist's n most probable classes, (B, M) bool."""
    if not 1 <= n <= membership.num_classes:
        raise StageError(f"n must be from 1 to the {membership.num_classes} classes, not {n}")
    by_class = membership.members.T.contiguous()
    active = torch.zeros(len(generalist_log_probabilities), by_class.shape[1], dtype=torch.bool)
    active = active.to(by_class.device)
    for classes in generalist_log_probabilities.topk(n, dim=-1).indices.unbind(dim=1):
        active |= by_class[classes]
    return active
