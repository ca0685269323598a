"""Memory of writing, reading and combining does not depend on the number of samples."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.targets.combine import EntropyWeights, combine
from orchestrator.targets.reader import open_targets
from orchestrator.targets.store import Description, TargetWriter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MEGABYTE = 1 << 20
ROWS, CLASSES = 160_000, 200  # 61 MB of logits, in shards of 3 MB
ALLOWED = 20 * MEGABYTE


def private_memory() -> int:
    """Bytes of this process that no file backs: mapped pages do not count, copies do."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def growth(steps: Iterator[object]) -> int:
    """The most private memory that was in use after any step, above what was in use before."""
    before = private_memory()
    return max(private_memory() for _ in steps) - before


def write(folder: Path, description: Description) -> Iterator[None]:
    writer = TargetWriter(folder, description, rows_per_shard=8192)
    for ids in torch.arange(description.rows).split(1000):
        writer.append(ids, (ids % 7).unsqueeze(1).expand(-1, description.num_classes).float())
        yield
    writer.close()
    yield


def read(folder: Path, root: Path) -> Iterator[None]:
    targets = open_targets(folder, root=root, expect=None)
    for rows in torch.arange(ROWS).flip(0).split(1000):
        assert targets.read(rows).logits[0, 0, 0] == rows[0] % 7
        yield


def test_writing_reading_and_combining_need_little_memory(
    root: Path, describe: Callable[..., Description], monkeypatch: pytest.MonkeyPatch
) -> None:
    description = describe(rows=ROWS, num_classes=CLASSES)
    folder = root / "stages/a"
    assert growth(write(folder, description)) < ALLOWED
    assert sum(path.stat().st_size for path in folder.iterdir()) > 3 * ALLOWED
    assert growth(read(folder, root)) < ALLOWED

    def combine_once() -> Iterator[None]:
        combine(root / "stages/mix", [folder, folder], root=root, rule="geometric", weights=EntropyWeights())
        yield

    assert growth(combine_once()) < ALLOWED
