"""Stored targets written out: every number is the store's, and reading them back changes none."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

from raydistill import export_targets
from raydistill.cli import main
from raydistill.errors import StoreError
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.targets import export
from raydistill.targets.reader import Targets, open_targets
from raydistill.tasks.hashing import text_id

PREDICTED = {"stage": "predict_targets", "teacher": "teacher"}
VIEWS = {"augment": [{"name": "flip"}], "views": 2}


def read_file(file: Path) -> dict[str, np.ndarray]:
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        return {name: np.array(table[name].to_pylist()) for name in table.column_names}
    return load_file(file) if file.suffix == ".safetensors" else dict(np.load(file))


def store(stages: Any, name: str = "targets") -> Targets:
    return open_targets(stages.folder(name).path, root=stages.root, expect=None)


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
def test_the_file_holds_every_row_of_every_view(
    ending: str, stages: Any, teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BLOCK_ELEMENTS", 100)  # 33 rows: blocks end within views
    stages.run({"teacher": teacher, "targets": PREDICTED | VIEWS})
    targets, folder = store(stages), stages.folder("targets").path
    found = read_file(export_targets(folder, tmp_path / f"out.{ending}", stages.root))
    rows = torch.arange(len(targets.ids))
    for view in range(2):
        here = found["view"] == view
        assert np.array_equal(found["ids"][here], targets.ids.numpy())
        expected = targets.read(rows, view).logits[:, 0].numpy()
        assert np.array_equal(found["logits"][here].astype(np.float32), expected)
    assert found["ids"].dtype == np.int64


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_targets_that_come_back_are_the_same_numbers(
    ending: str, scale: float, stages: Any, tmp_path: Path
) -> None:
    ids = np.load(stages.file)["ids"]
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)) * scale + 17 * scale
    np.savez(tmp_path / "a.npz", ids=ids, logits=logits)
    stages.run({"targets": {"stage": "external_targets", "file": str(tmp_path / "a.npz")}})
    first = store(stages)
    file = export_targets(stages.folder("targets").path, tmp_path / f"out.{ending}", stages.root)
    stages.run({"again": {"stage": "external_targets", "file": str(file)}})
    again, rows = store(stages, "again"), torch.arange(len(first.ids))
    assert torch.equal(again.ids, first.ids)
    assert torch.equal(again.read(rows).logits, first.read(rows).logits)


def test_kept_classes_come_back_with_what_they_leave(stages: Any, teacher: Any, tmp_path: Path) -> None:
    stages.run({"teacher": teacher, "targets": PREDICTED | {"top_k": 2}})
    first = store(stages)
    file = export_targets(stages.folder("targets").path, tmp_path / "out.npz", stages.root)
    stages.run({"again": {"stage": "external_targets", "file": str(file), "indices": "indices"}})
    again, rows = store(stages, "again"), torch.arange(len(first.ids))
    assert again.top_k == first.top_k
    one, other = (targets.read(rows).logits[:, 0].softmax(1) for targets in (first, again))
    torch.testing.assert_close(other, one, rtol=0, atol=1e-3)


def test_the_command_writes_it_and_says_where(stages: Any, teacher: Any, tmp_path: Path) -> None:
    stages.run({"teacher": teacher, "targets": PREDICTED})
    folder = str(stages.folder("targets").path)
    arguments = ["export-targets", folder, str(tmp_path / "o.npz"), "--runs", str(stages.root)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert set(read_file(tmp_path / "o.npz")) == {"ids", "view", "logits"}


def test_pictures_keep_their_names(stages: Any, teacher: Any, tmp_path: Path) -> None:
    draw, folder = np.random.default_rng(0), tmp_path / "pictures"
    for index in range(24):
        path = folder / ("val" if index < 6 else "train") / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(255, size=(8, 8, 3), dtype=np.uint8)).save(path)
    task = {"name": "image_folder", "folder": str(folder), "image_size": 8, "workers": 0}
    plan = {"name": "p", "task": task, "stages": {"teacher": teacher | {"epochs": 1}, "targets": PREDICTED}}
    stages.plan = Plan.model_validate(plan)
    stages.graph = order_stages(stages.plan)
    assert [stages.attempt(name).status for name in ("teacher", "targets")] == ["done", "done"]
    for ending in ("npz", "parquet"):
        target = stages.folder("targets").path
        found = read_file(export_targets(target, tmp_path / f"out.{ending}", stages.root))
        assert [text_id(name) for name in found["names"].tolist()] == found["ids"].tolist()


def test_what_has_no_logits_of_its_own_is_refused(stages: Any, teacher: Any, tmp_path: Path) -> None:
    both = {"stage": "combine_targets", "targets": ["targets", "second"]}
    second = PREDICTED | {"teacher": "other"}
    other = teacher | {"seed": 1}
    stages.run({"teacher": teacher, "other": other, "targets": PREDICTED, "second": second, "both": both})
    with pytest.raises(StoreError, match="depends on the temperature"):
        export_targets(stages.folder("both").path, tmp_path / "out.npz", stages.root)
    with pytest.raises(StoreError, match="known are"):
        export_targets(stages.folder("targets").path, tmp_path / "out.csv", stages.root)
    with pytest.raises(StoreError, match="holds no targets"):
        export_targets(stages.folder("teacher").path, tmp_path / "out.npz", stages.root)
    assert not list(tmp_path.glob("out*"))
