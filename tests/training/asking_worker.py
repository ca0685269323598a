"""One worker of a gloo group that asks a model about splits of all small sizes, together with the others and alone.

    python asking_worker.py RANK WORLD RENDEZVOUS_FILE FOLDER

What it heard is written to the folder, a file of tensors for each rank.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from safetensors.torch import save_file
from torch import Tensor

from raydistill.tasks.splits import TensorSplit
from raydistill.training import workers
from raydistill.training.evaluation import Predictions, ask, ask_each
from raydistill.training.workers import ALONE, Workers

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13)
BATCH, CLASSES, MEMBERS = 3, 5, 2


class CountingSplit(TensorSplit):
    """Remembers which samples were asked for."""

    asked: list[int]

    def batches(self, order: Any, view: Any) -> Iterator[Tensor]:
        for positions in order:
            self.__dict__["asked"] += positions.tolist()
            yield from super().batches([positions], view)


def split_of(size: int) -> CountingSplit:
    draw = torch.Generator().manual_seed(size)
    inputs, labels = torch.randn(size, 6, generator=draw), torch.randint(CLASSES, (size,), generator=draw)
    split = CountingSplit(inputs, labels, torch.arange(size))
    split.__dict__["asked"] = []
    return split


def weights() -> Tensor:
    return torch.randn(6, MEMBERS * CLASSES, generator=torch.Generator().manual_seed(0))


def main(rank: int, world: int, rendezvous: str, folder: Path) -> None:
    torch.set_num_threads(1)
    workers.AT_ONCE = 11  # numbers, so two rows of logits: there are several exchanges
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    both = weights()
    found: dict[str, Tensor] = {}

    def keep(name: str, told: Predictions) -> None:
        found.update(
            {f"{name}/{key}": torch.from_numpy(value) for key, value in told.columns._asdict().items()}
        )
        found.update({f"{name}/logits": told.logits, f"{name}/classes": torch.tensor(told.num_classes)})

    for size in SIZES:
        for how, group in (("together", Workers(rank, world)), ("alone", ALONE)):
            split = split_of(size)
            rows = torch.arange(0, size, 2)
            told = ask(lambda x: x @ both[:, :CLASSES], split, lambda _: rows, BATCH, group)  # noqa: B023
            found[f"{how}/{size}/asked"] = torch.tensor(split.asked, dtype=torch.int64)
            keep(f"{how}/{size}", told)
            members = ask_each(lambda x: (x @ both).view(-1, MEMBERS, CLASSES), MEMBERS, split, BATCH, group)
            for index, each in enumerate(members):
                keep(f"{how}/{size}/{index}", each)
    save_file({key: value.contiguous() for key, value in found.items()}, folder / f"heard-{rank}.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
