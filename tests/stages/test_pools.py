"""`transfer: {also: ...}`: samples without labels that lie beside a task's own."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydistill.errors import PlanError
from raydistill.execution.submit.needs import find_needs
from raydistill.kinds.training import TransferConfig
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.plan.written import Source
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.joined_split import JoinedSplit, join
from raydistill.tasks.many_class import ManyClass
from raydistill.tasks.pool import Pool
from raydistill.tasks.shards import write_json, write_shards
from raydistill.tasks.splits import TensorSplit, View
from raydistill.tasks.survey import survey_task
from raydistill.tasks.task import Arrays
from raydistill.tasks.tensors import Tensors
from raydistill.training.data import Views, build_transfer_set
from tests.builders.packed_pictures import FORMATS, some_pictures

SOFT = {"method": "hinton", "temperature": 2.0}


def write_pictures(folder: Path, count: int, size: int = 12, first: int = 0) -> None:
    draw = np.random.default_rng(first)
    for number in range(count):
        file = folder / f"{'deep/' * (number % 2)}{first + number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(256, size=(size, size, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageFolder:
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path / "memory"))
    for number, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
        write_pictures(tmp_path / "data" / place, 8, first=100 * number)
    write_pictures(tmp_path / "pool", 7, first=5000)
    return ImageFolder(folder=tmp_path / "data", image_size=8, resize=8, workers=0)


@pytest.fixture
def arrays(stages: Any) -> dict[str, Any]:
    """A file of the same kind as the stages' own, without labels."""
    draw = np.random.default_rng(1)
    file = stages.file.with_name("pool.npz")
    np.savez(file, inputs=draw.uniform(size=(40, 1, 8, 8)).astype(np.float32))
    return {"also": {"file": str(file)}}


def test_pictures_of_a_pool_are_read_as_the_task_reads_its_own(pictures: ImageFolder, tmp_path: Path) -> None:
    data, pool = pictures.load(), Pool(tmp_path / "pool", None, "inputs")
    split = pool.add_to(data.train, pictures)
    assert len(split) == len(data.train) + 7
    (inputs,) = split.batches([torch.arange(len(split))], None)
    own = next(data.train.batches([torch.arange(len(data.train))], None))
    assert torch.equal(inputs[: len(own)], own)
    files = sorted(
        (tmp_path / "pool").rglob("*.png"), key=lambda file: str(file.relative_to(tmp_path / "pool"))
    )
    expected = [torch.from_numpy(pictures.picture_input(file, (3, 8, 8))) for file in files]
    assert sorted(row.sum().item() for row in inputs[len(own) :]) == pytest.approx(
        sorted((row.float() / 255).sum().item() for row in expected)
    )
    assert (split.labels[len(own) :] == -1).all()
    assert (split.ids[len(own) :] < 0).all()
    assert len(split.ids.unique()) == len(split)


def test_an_id_stays_when_pictures_are_added(pictures: ImageFolder, tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool", None, "inputs")
    before = set(pool.add_to(pictures.load().train, pictures).ids.tolist())
    content = pool.content()
    write_pictures(tmp_path / "pool", 3, first=7000)
    assert before < set(pool.add_to(pictures.load().train, pictures).ids.tolist())
    assert pool.content() != content


def test_pictures_stand_beside_a_task_in_memory(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        inputs=draw.integers(256, size=(60, 1, 12, 12), dtype=np.uint8),
        labels=np.arange(60) % 3,
    )
    write_pictures(tmp_path / "pool", 5)
    task = Tensors(file=tmp_path / "data.npz")
    split = Pool(tmp_path / "pool", None, "inputs").add_to(task.load().train, task)
    assert isinstance(split, TensorSplit)
    assert split.inputs[-5:].dtype == torch.uint8
    grey = Image.open(sorted((tmp_path / "pool").glob("*.png"))[0]).convert("L")
    assert any((row[0].numpy() - np.array(grey)).max() <= 1 for row in split.inputs[-5:])


def test_pictures_stand_beside_shards(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count, first in (("train", 30, 0), ("test", 6, 100)):
        pixels = draw.integers(256, size=(count, 3, 12, 12), dtype=np.uint8)
        write_shards(tmp_path, split, [Arrays(pixels, np.arange(count) % 3, first + np.arange(count))])
    write_json(tmp_path / "classes.json", ["a", "b", "c"])
    write_pictures(tmp_path / "pool", 5)
    task = ManyClass(folder=tmp_path)
    train = task.load().train
    split = Pool(tmp_path / "pool", None, "inputs").add_to(train, task)
    assert isinstance(split, JoinedSplit)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    inputs = torch.cat(list(split.batches(order.split(4), None)))
    own = torch.cat(list(train.batches([torch.arange(len(train))], None)))
    assert torch.equal(inputs[order.argsort()][: len(train)], own)
    assert split.ids[order][order.argsort()].tolist() == split.ids.tolist()


def test_a_joined_split_delivers_what_its_parts_deliver() -> None:
    draw = torch.Generator().manual_seed(0)
    one = TensorSplit(torch.rand(9, 2, generator=draw), torch.zeros(9).long(), torch.arange(9))
    two = TensorSplit(torch.rand(6, 2, generator=draw), torch.full((6,), -1), -1 - torch.arange(6))
    whole = join(one, two)
    parts = JoinedSplit(one, two, torch.arange(15), whole.labels, whole.ids)
    order = [torch.tensor([14, 0, 9, 3]), torch.tensor([1, 2]), torch.tensor([10, 13, 11]), torch.tensor([8])]
    for name in (None, View(0, 1)):
        for ours, theirs in zip(parts.batches(order, name), whole.batches(order, name), strict=True):
            assert torch.equal(ours, theirs)
    chosen = torch.tensor([12, 4, 0, 14])
    some = parts.select(chosen).select(torch.tensor([3, 1]))
    assert some.ids.tolist() == whole.ids[[14, 4]].tolist()
    assert torch.equal(next(some.batches([torch.tensor([0, 1])], None)), whole.inputs[[14, 4]])


@pytest.mark.parametrize("form", FORMATS)
def test_pictures_of_a_pool_may_be_in_shards(pictures: ImageFolder, tmp_path: Path, form: str) -> None:
    shards = FORMATS[form](tmp_path / "shards", {"test": some_pictures()["test"]})
    pool = Pool(tmp_path / "shards", None, "inputs")
    assert pool.missing(pictures) is None
    content, without = pool.content(), Pool(tmp_path / "pool", None, "inputs").content()
    assert content != without
    data = pictures.load()
    split = pool.add_to(data.train, pictures)
    assert len(split) - len(data.train) == len(pool) == 9
    (found,) = split.batches([torch.arange(len(data.train), len(split))], None)
    assert not (tmp_path / "shards" / ".pictures").exists()
    whole = shards.model_copy(update={"image_size": 8, "resize": 8, "train": f"**/*{shards.ending}"}).store()
    expected = [pictures.pixels(partial(whole.read_part, row, 3), pictures.centre, 8, 8) for row in range(9)]
    assert torch.equal(found, torch.from_numpy(np.stack(expected)) / 255)
    assert (split.ids[-9:] < 0).all()
    assert split.labels[-9:].tolist() == [-1] * 9
    (note,) = (text for text in (f.text for f in survey_task(pictures, [pool]).findings) if "beside" in text)
    assert note.startswith("`shards`: 9 samples without labels")
    write_pictures(tmp_path / "shards", 3)  # beside them
    assert len(pool.add_to(data.train, pictures)) == len(data.train) + 9 + 3
    many = ManyClass(folder=tmp_path, channels=3, image_size=8)
    assert "are for tasks that decode pictures while training" in str(pool.missing(many))


def test_a_student_learns_from_a_pool_and_its_teacher_does_not(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], arrays: dict[str, Any]
) -> None:
    taught = student | {"teachers": ["teacher"], "method": SOFT}
    stages.run(
        {
            "teacher": teacher,
            "alone": taught,
            "stored": taught | {"transfer": arrays},
            "live": taught | {"mode": "live", "transfer": arrays},
        }
    )
    train = len(Tensors(file=stages.file).load().train)
    rows = {
        name: stages.record(name).metrics["targets/rows"] for name in stages.graph.nodes if "targets" in name
    }
    assert sorted(rows.values()) == [train, train + 40]
    # Stored targets are rounded to float16; the pool is there in both.
    apart = (stages.logits("stored") - stages.logits("live")).abs().max()
    assert apart < 0.05 < (stages.logits("stored") - stages.logits("alone")).abs().max()


@pytest.mark.parametrize("mode", ["stored", "live"])
def test_an_empty_pool_changes_no_bit(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], arrays: dict[str, Any], mode: str
) -> None:
    np.savez(arrays["also"]["file"], inputs=np.zeros((0, 1, 8, 8), dtype=np.float32))
    taught = student | {"teachers": ["teacher"], "method": SOFT, "mode": mode}
    stages.run({"teacher": teacher, "alone": taught, "student": taught | {"transfer": arrays}})
    alone, beside = (stages.record(name).payload["model.safetensors"] for name in ("alone", "student"))
    assert alone == beside


def test_an_empty_part_of_the_training_split_and_a_pool_whole(stages: Any, arrays: dict[str, Any]) -> None:
    task = Tensors(file=stages.file)
    data = task.load()
    transfer = TransferConfig.model_validate({"fraction": 0.1, **arrays})
    found = build_transfer_set(data, transfer, Views(), "cpu", with_unlabelled=True, task=task)
    assert len(found) == round(0.1 * len(data.train)) + 40
    assert found.labelled == pytest.approx(round(0.1 * len(data.train)) / len(found))


def test_a_pool_is_known_by_its_content(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], arrays: dict[str, Any]
) -> None:
    def number(transfer: dict[str, Any]) -> str:
        taught = student | {"teachers": ["teacher"], "transfer": transfer}
        return str(stages.write({"teacher": teacher, "student": taught}).nodes["student"].fingerprint)

    file = Path(arrays["also"]["file"])
    before = number(arrays)
    assert before != number({})
    moved = file.rename(file.with_name("moved.npz"))
    assert number({"also": {"file": str(moved)}}) == before
    np.savez(moved, inputs=np.zeros((40, 1, 8, 8), dtype=np.float32))
    assert number({"also": {"file": str(moved)}}) != before


@pytest.mark.parametrize(
    ("transfer", "problem"),
    [
        ({"also": {"folder": "nowhere/"}}, "there is no folder"),
        ({"also": {"file": "nowhere.npz"}}, "there is no file"),
        ({"also": {}}, "name a `folder` of pictures or a `file` of arrays"),
        ({"also": {"folder": "."}, "unlabelled": False}, "which `unlabelled` leaves out"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], transfer: Any, problem: str
) -> None:
    with pytest.raises(Exception, match=problem):
        stages.write(
            {"teacher": teacher, "student": student | {"teachers": ["teacher"], "transfer": transfer}}
        )


def test_a_baseline_takes_no_pool(stages: Any, teacher: dict[str, Any], arrays: dict[str, Any]) -> None:
    with pytest.raises(
        PlanError, match="only `distill` and `predict_targets` learn from samples without labels"
    ):
        stages.write({"teacher": teacher | {"transfer": arrays}})


def test_targets_must_be_about_the_pool_too(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], arrays: dict[str, Any]
) -> None:
    plan = {"teacher": teacher, "targets": {"stage": "predict_targets", "teacher": "teacher"}}
    with pytest.raises(PlanError, match="write the same `also` in both"):
        stages.write(plan | {"student": student | {"targets": "targets", "transfer": arrays}})
    plan["targets"]["transfer"] = arrays
    stages.run(plan | {"student": student | {"targets": "targets", "transfer": arrays}})


def test_the_survey_looks_at_the_pool(pictures: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "pool" / "broken.png").write_bytes(b"no picture")
    found = survey_task(pictures, [Pool(tmp_path / "pool", None, "inputs")]).findings
    assert any("`pool`: 8 samples without labels" in finding.text for finding in found)
    assert any(finding.level == "error" and "broken.png" in finding.text for finding in found)
    skipping = pictures.model_copy(update={"on_error": "skip"})
    assert len(Pool(tmp_path / "pool", None, "inputs").add_to(pictures.load().train, skipping)) == 16 - 2 + 7


def test_other_arrays_are_an_error_before_training(stages: Any) -> None:
    file = stages.file.with_name("other.npz")
    for inputs, problem in (
        (np.zeros((5, 3, 3), dtype=np.float32), "expected"),
        (np.zeros((5, 1, 8, 8), dtype=np.int64), "holds int64"),
    ):
        np.savez(file, inputs=inputs)
        (found,) = survey_task(Tensors(file=stages.file), [Pool(None, file, "inputs")]).findings
        assert (found.level, problem in found.text) == ("error", True)


def test_a_pool_beside_the_plan_is_found_and_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "task": {"name": "mnist"},
        "stages": {"s": {"stage": "distill", "transfer": {"also": {"folder": "pool/"}}}},
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool").mkdir()
    needs = find_needs(tmp_path, tmp_path / "plan.yaml", Source("plan.yaml", values=values))
    assert "pool" in needs.required


@pytest.mark.parametrize(
    "task",
    [
        {"name": "npy", "inputs": "one.npy", "labels": "two.npy"},
        {"name": "webdataset", "folder": "one.npy"},
        {"name": "image_folder", "folder": ["one.npy", "two.npy"]},
        {"name": "tensors", "file": "one.npy", "inputs": "inputs"},
    ],
)
def test_data_beside_the_plan_is_found_and_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.npy", "two.npy", "inputs"):
        (tmp_path / name).touch()
    needs = find_needs(tmp_path, tmp_path / "plan.yaml", Source("plan.yaml", values={"task": task}))
    written = [name for value in task.values() for name in (value if isinstance(value, list) else [value])]
    assert needs.required.keys() == {name for name in written if name.endswith(".npy")}
    assert all("name a path that every node sees" in need.way_out for need in needs.required.values())


def test_a_task_of_pictures_from_its_plan(pictures: ImageFolder, tmp_path: Path) -> None:
    plan = {
        "name": "p",
        "task": {"name": "image_folder", "folder": str(pictures.folder), "image_size": 8},
        "stages": {
            "teacher": {"stage": "train", "epochs": 1, "model": {"name": "mlp", "widths": [4]}},
            "student": {
                "stage": "distill",
                "student": {"name": "mlp", "widths": [4]},
                "teachers": ["teacher"],
                "epochs": 1,
                "transfer": {"also": {"folder": str(tmp_path / "pool")}},
            },
        },
    }
    graph = order_stages(Plan.model_validate(plan))
    written = graph.nodes["student"].identity["config"]["transfer"]["also"]
    assert set(written) == {"content"}
