"""Small stores to read, combine and damage: 23 samples of 5 classes, in shards of 6 rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.targets.store import Description, TargetWriter

ROWS = 23


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def ids() -> Tensor:
    return torch.arange(ROWS) * 7 + 3


@pytest.fixture
def describe() -> Callable[..., Description]:
    def build(**changes: object) -> Description:
        fields: dict[str, object] = {"task": "digits", "split": "train", "num_classes": 5, "rows": ROWS}
        return Description.model_validate(fields | {"teachers": ("cafe01",)} | changes)

    return build


@pytest.fixture
def draw_logits() -> Callable[..., Tensor]:
    """Logits (views, rows, C) for a description, a few nats wide."""

    def draw(description: Description, seed: int = 0) -> Tensor:
        shape = (description.views_stored, description.rows, description.num_classes)
        return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def as_stored() -> Callable[[Tensor], Tensor]:
    """What is left of logits (..., C): differences from the largest, rounded to float16. By numpy's rounding."""

    def rounded(logits: Tensor) -> Tensor:
        values = logits.numpy().astype(np.float32)
        level = values.max(axis=-1, keepdims=True)
        return torch.from_numpy((values - level).astype(np.float16).astype(np.float32) + level)

    return rounded


@pytest.fixture
def write_store(
    root: Path,
    ids: Tensor,
    describe: Callable[..., Description],
    draw_logits: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """Write a store to `root`/stages; returns its logits (views, rows, C) as the writer got them."""

    def write(name: str, *, seed: int = 0, sample_ids: Tensor = ids, **changes: object) -> Tensor:
        description = describe(**changes)
        logits = draw_logits(description, seed)
        writer = TargetWriter(root / "stages" / name, description, rows_per_shard=6)
        for view in logits:
            for block in torch.arange(description.rows).split(4):
                writer.append(sample_ids[block], view[block])
        writer.close()
        return logits

    return write
