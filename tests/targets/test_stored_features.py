"""Features in a store: as float16 beside logits or in their place, resumed together, never those of another name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.errors import StageError, StoreError
from raydistill.targets.combine import combine
from raydistill.targets.reader import open_targets
from raydistill.targets.shards import ShardWriter
from raydistill.targets.store import Description, TargetWriter, load_manifest

SHAPES = {"embedding": (7,), "layer4.1.relu:input": (2, 3, 3)}
Describe = Callable[..., Description]


def drawn(description: Description, seed: int = 0) -> dict[str, Tensor]:
    """Of each feature (views, rows, ...)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (description.views_stored, description.rows)
    return {name: 5 * torch.randn(*shape, *own, generator=generator) for name, own in SHAPES.items()}


def fill(writer: TargetWriter, ids: Tensor, logits: Tensor, features: dict[str, Tensor]) -> None:
    """Write from where the writer is, in blocks of 4."""
    flat = {name: values.flatten(0, 1) for name, values in features.items()}
    all_ids, all_logits = ids.repeat(len(logits)), logits.flatten(0, 1)
    for start in range(writer.rows_done, len(all_ids), 4):
        rows = slice(start, start + 4)
        writer.append(all_ids[rows], all_logits[rows], {name: values[rows] for name, values in flat.items()})


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"form": "features"}])
def test_features_are_read_as_they_were_rounded(
    root: Path, ids: Tensor, describe: Describe, draw_logits: Any, options: dict[str, Any]
) -> None:
    description = describe(views=2, augment=({"name": "flip"},))
    features = drawn(description)
    writer = TargetWriter(root / "stages/a", description, features=SHAPES, rows_per_shard=6, **options)
    fill(writer, ids, draw_logits(description), features)
    assert writer.close() == load_manifest(root / "stages/a")
    targets = open_targets(root / "stages/a", root=root, expect=None)
    assert targets.feature_shapes == SHAPES
    assert targets.num_teachers == (0 if "form" in options else 1)
    rows = torch.tensor([22, 0, 5, 5])
    assert torch.equal(targets.rows_of(ids[rows]), rows)
    for view in range(2):
        read = targets.read(rows, view, features=list(SHAPES))
        assert read.logits.shape == (4, targets.num_teachers, 5)
        for name, values in features.items():
            expected = values[view][rows].numpy().astype(np.float16).astype(np.float32)
            assert np.array_equal(read.features[name].numpy(), expected)
    assert targets.read(rows).features == {}
    with pytest.raises(StoreError, match="hold no `pooled`, but: `embedding`, `layer4"):
        targets.read(rows, features=["pooled"])


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("shard", [0, 1, 3])
def test_a_writer_that_was_killed_between_two_columns_goes_on_and_writes_the_same_files(
    root: Path,
    ids: Tensor,
    describe: Describe,
    draw_logits: Any,
    monkeypatch: pytest.MonkeyPatch,
    column: int,
    shard: int,
) -> None:
    description = describe()
    logits, features = draw_logits(description), drawn(description)
    whole = TargetWriter(root / "stages/whole", description, features=SHAPES, rows_per_shard=6)
    fill(whole, ids, logits, features)
    expected = whole.close()

    def write_or_die(self: ShardWriter) -> None:
        name = ("logits", "feature0", "feature1")[column]
        if self.layout.column == name and self._next == shard:
            raise InterruptedError
        plain(self)

    plain = ShardWriter._write_shard
    monkeypatch.setattr(ShardWriter, "_write_shard", write_or_die)
    with pytest.raises(InterruptedError):
        fill(
            TargetWriter(root / "stages/a", description, features=SHAPES, rows_per_shard=6),
            ids,
            logits,
            features,
        )
    monkeypatch.undo()
    again = TargetWriter(root / "stages/a", description, features=SHAPES, rows_per_shard=6)
    assert again.rows_done == 6 * shard
    fill(again, ids, logits, features)
    assert again.close() == expected
    files = {path.name for path in (root / "stages/a").glob("*.arrow")}
    assert files == set(expected.files)
    for name in files:
        assert (root / "stages/a" / name).read_bytes() == (root / "stages/whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("value", "reason"), [(float("nan"), "not finite"), (7e4, r"does not fit into float16 \(±65504\)")]
)
def test_a_number_that_cannot_be_stored_is_named_and_nothing_is_taken(
    root: Path, ids: Tensor, describe: Describe, draw_logits: Any, value: float, reason: str
) -> None:
    description = describe(views=2, augment=({"name": "flip"},))
    features, logits = drawn(description), draw_logits(description)
    features["embedding"][1, 2, 3] = value
    writer = TargetWriter(root / "stages/a", description, features=SHAPES, rows_per_shard=6)
    with pytest.raises(StageError, match=f"in `embedding` for sample {int(ids[2])} in view 1: .*{reason}"):
        fill(writer, ids, logits, features)
    assert {column.rows_done for column in writer._columns} == {24}
    with pytest.raises(StageError, match=r"gave `embedding` of shape \(1, 6\) for 1 samples, not \(1, 7\)"):
        writer.append(ids[:1], logits[0, :1], {**features, "embedding": torch.zeros(1, 6)})


def test_shards_of_one_feature_do_not_pass_for_those_of_another(
    root: Path, ids: Tensor, describe: Describe, draw_logits: Any
) -> None:
    description = describe()
    for folder, name in (("a", "embedding"), ("b", "pooled")):
        writer = TargetWriter(root / "stages" / folder, description, features={name: (7,)}, form="features")
        writer.append(ids, draw_logits(description)[0], {name: drawn(description)["embedding"][0]})
        writer.close()
    (root / "stages/a/feature0-00000.arrow").write_bytes(
        (root / "stages/b/feature0-00000.arrow").read_bytes()
    )
    with pytest.raises(StoreError, match="is a shard of another store"):
        open_targets(root / "stages/a", root=root, expect=None, verify_checksums=False)
    with pytest.raises(StoreError, match="damaged: its SHA-256"):
        open_targets(root / "stages/a", root=root, expect=None)
    with pytest.raises(StoreError, match="holds features and no logits to combine"):
        combine(root / "stages/c", [root / "stages/b"], root=root)


def test_wide_features_are_cut_into_more_shards(
    root: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydistill.targets.store.SHARD_BYTES", 1000)
    writer = TargetWriter(root / "stages/a", describe(), features={"maps": (2, 5, 5)})
    assert {column.rows_per_shard for column in writer._columns} == {1000 // (2 * (5 + 2 + 50))}
