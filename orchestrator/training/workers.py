"""The processes of a data-parallel stage: what each of them does of a list, and how what they found comes together.

Parts may differ in length, and be empty: every worker takes part in every exchange, with as much as the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from raydistill.runs.context import StageContext

AT_ONCE = 1 << 24  # numbers that each worker sends in one exchange of rows: 64 MB of float32

Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Workers:
    """One of `world` processes of a `torch.distributed` group; what they exchange lies on `device`."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @classmethod
    def of(cls, context: StageContext) -> "Workers":
        """Those who make the stage as one group; workers that claim pieces are none."""
        if context.world == 1 or not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        # gloo, which serves workers that share a GPU, gathers on the CPU alone.
        device = context.device if "nccl" in distributed.get_backend() else "cpu"
        return cls(context.rank, context.world, device)

    def own(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """This worker's part of a list that all of them know."""
        return pieces[slice(*self._bounds(len(pieces), self.rank))]

    def counts(self, sizes: Sequence[int]) -> list[int]:
        """What the sizes of each worker's pieces add up to, of pieces of these sizes."""
        return [sum(sizes[slice(*self._bounds(len(sizes), rank))]) for rank in range(self.world)]

    def largest(self, number: int) -> int:
        """The largest of the workers' numbers."""
        if self.world == 1:
            return number
        found = torch.tensor(number, device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def gathered(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows (n, ...) of all workers one after another, on the CPU of each; each has as many as `counts` says."""
        if self.world == 1:
            return rows.cpu()
        padded = _padded(rows, max(counts)).to(self.device)
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count].cpu() for part, count in zip(parts, counts, strict=True)])

    def collected(self, rows: Tensor, counts: Sequence[int]) -> Tensor | None:
        """The rows (n, C) of all workers one after another, on the main one's CPU, some at a time; for the others
        None."""
        if self.world == 1:
            return rows.cpu()
        at_once = max(1, min(max(counts), AT_ONCE // max(1, rows.shape[1])))
        found: list[list[Tensor]] = [[] for _ in range(self.world)]
        for start in range(0, max(counts), at_once):
            padded = _padded(rows[start : start + at_once], at_once).to(self.device)
            parts = [torch.empty_like(padded) for _ in range(self.world)] if self.rank == 0 else None
            distributed.gather(padded, parts, dst=0)
            for part, count, own in zip(parts or (), counts, found, strict=bool(parts)):
                own.append(part[: max(0, count - start)].cpu())
        return (
            torch.cat([rows[:0].cpu(), *(part for own in found for part in own)]) if self.rank == 0 else None
        )

    def send(self, tensors: Sequence[Tensor]) -> None:
        """The main one's values of these tensors, to every worker."""
        if self.world > 1:
            for tensor in tensors:
                send(tensor)

    def _bounds(self, count: int, rank: int) -> tuple[int, int]:
        # The first ones have one more: the main one is idle only where there is nothing at all.
        start, stop = (-(-count * end // self.world) for end in (rank, rank + 1))
        return start, stop


ALONE = Workers()


@torch.no_grad()
def send(tensor: Tensor) -> None:
    """The main process's values of a tensor, to every process of the group."""
    sent = tensor.contiguous()  # channels_last is not, and back ends differ in what they take
    distributed.broadcast(sent, 0)
    tensor.copy_(sent)


def from_all(values: Tensor, world: int) -> Tensor:
    """The values (n, ...) of all workers one after another, n of each, on the device of each."""
    if world == 1:
        return values
    # gloo, which serves workers that share a GPU, gathers on the CPU alone: the host waits there.
    sent = values.contiguous().to(values.device if "nccl" in distributed.get_backend() else "cpu")
    parts = [torch.empty_like(sent) for _ in range(world)]
    distributed.all_gather(parts, sent)
    return torch.cat(parts).to(values.device)


def state_of(model: nn.Module) -> list[Tensor]:
    """The tensors that are a model's weights and buffers."""
    return list(model.state_dict().values())


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])]).contiguous()
