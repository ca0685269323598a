"""Memory of writing, reading and combining does not depend on the number of samples."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from raydistill.targets.combine import EntropyWeights, combine
from raydistill.targets.reader import open_targets
from raydistill.targets.store import Description, TargetWriter

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

MEGABYTE = 1 << 20
ROWS, CLASSES, ROWS_PER_SHARD = 400_000, 200, 8192  # 153 MB of logits, in shards of 3 MB
FEW = 20_000
ALLOWED = 40 * MEGABYTE  # a memory allocator keeps and gives back up to 20 MB as it likes


def private_memory() -> int:
    """Bytes of this process that no file backs: mapped pages do not count, copies do."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def growth(steps: Iterator[object]) -> int:
    """The most private memory that was in use after any step, above what was in use before."""
    before = private_memory()
    return max(private_memory() for _ in steps) - before


def write(folder: Path, description: Description) -> Iterator[None]:
    writer = TargetWriter(folder, description, rows_per_shard=ROWS_PER_SHARD)
    for ids in torch.arange(description.rows).split(1000):
        writer.append(ids, (ids % 7).unsqueeze(1).expand(-1, description.num_classes).float())
        yield
    writer.close()
    yield


def read(folder: Path, root: Path, rows: int) -> Iterator[None]:
    targets = open_targets(folder, root=root, expect=None)
    for batch in torch.arange(rows).flip(0).split(1000):
        assert targets.read(batch).logits[0, 0, 0] == batch[0] % 7
        yield


def mix(folder: Path, root: Path) -> Iterator[None]:
    target = folder.with_name(f"{folder.name}-mix")
    members = [folder, folder]
    combine(
        target, members, root=root, rule="geometric", weights=EntropyWeights(), rows_per_shard=ROWS_PER_SHARD
    )
    yield


def test_writing_reading_and_combining_need_no_more_memory_for_many_samples_than_for_few(
    root: Path, describe: Callable[..., Description]
) -> None:
    """The few are what it takes to fill every buffer once; only what the many need beyond them is counted."""

    def growths(name: str, rows: int) -> list[int]:
        folder = root / "stages" / name
        written = growth(write(folder, describe(rows=rows, num_classes=CLASSES)))
        return [written, growth(read(folder, root, rows)), growth(mix(folder, root))]

    growths("few", FEW)
    assert max(growths("many", ROWS)) < ALLOWED
    assert sum(path.stat().st_size for path in (root / "stages/many").iterdir()) > 3 * ALLOWED


def test_many_classes_of_which_few_are_kept_need_the_memory_of_a_batch(
    root: Path, describe: Callable[..., Description]
) -> None:
    """Dense, the rows would be 58 MB as they are stored and 115 MB as they are read; a batch is 2 MB."""
    classes, rows = 15_000, 1920
    folder = root / "stages/kept"
    logits = torch.randn(32, classes)

    def write_kept() -> Iterator[None]:
        description = describe(rows=rows, num_classes=classes)
        writer = TargetWriter(folder, description, top_k=100, rows_per_shard=512)
        for ids in torch.arange(rows).split(32):
            writer.append(ids, logits)
            yield
        writer.close()

    def read_kept() -> Iterator[None]:
        targets = open_targets(folder, root=root, expect=None)
        for batch in torch.arange(rows).flip(0).split(32):
            assert targets.read(batch, temperature=4.0).logits.shape == (32, 1, classes)
            yield

    assert growth(write_kept()) < ALLOWED
    assert growth(read_kept()) < ALLOWED
    assert sum(path.stat().st_size for path in folder.glob("*.arrow")) < rows * (4 * 100 + 50 + 12 + 8)
