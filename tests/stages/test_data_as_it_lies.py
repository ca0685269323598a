"""Students of data as it lies, in shards or mapped: bit for bit those of the same in folders or in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.stages.external_targets import paths_by_id
from raydistill.tasks import packed_task
from raydistill.tasks.hashing import text_id
from raydistill.tasks.npy import Npy
from raydistill.tasks.task import Task
from raydistill.tasks.tensors import Tensors
from tests.builders.packed_pictures import FORMATS, as_folders, name_of, some_pictures

SOFT = {"method": "hinton", "temperature": 2.0}


def run(stages: Any, task: Task, nodes: dict[str, Any]) -> dict[str, str]:
    """The digests of the models that the stages make of a task."""
    stages.plan = Plan.model_validate({"name": "p", "task": task.model_dump(mode="json"), "stages": nodes})
    stages.graph = order_stages(stages.plan)
    for name in stages.graph.nodes:
        if stages.folder(name).record() is None:
            outcome = stages.attempt(name)
            assert outcome.status == "done", outcome.error
    return {name: stages.record(name).payload["model.safetensors"] for name in nodes}


def ids_in_folders(place: str, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """What `image_folder` calls the samples."""
    rows = [int(key.decode().removesuffix(".png")) for key in keys.tolist()]
    split = Path(place).name.split("-")[0]
    return np.array([text_id(name_of(split, row, row % 3)) for row in rows])


@pytest.mark.parametrize("form", FORMATS)
def test_students_are_those_of_the_same_pictures_in_folders(
    stages: Any, teacher: Any, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    pictures = some_pictures()
    taught = student | {"teachers": ["teacher"], "method": SOFT, "augment": [{"name": "flip"}]}
    nodes = {"teacher": teacher, "stored": taught | {"views": 2}, "live": taught | {"mode": "live"}}
    nodes = {name: stage | {"epochs": 2} for name, stage in nodes.items()}
    expected = run(stages, as_folders(tmp_path / "folders", pictures), nodes)
    task = FORMATS[form](tmp_path / "packed", pictures)
    monkeypatch.setattr(packed_task, "_ids", ids_in_folders)
    stages.root = tmp_path / "of shards"
    assert run(stages, task, nodes) == expected


def test_students_of_mapped_arrays_are_those_of_arrays_in_memory(
    stages: Any, teacher: Any, student: Any, tmp_path: Path
) -> None:
    taught = student | {"teachers": ["teacher"], "method": SOFT}
    nodes = {"teacher": teacher, "stored": taught, "live": taught | {"mode": "live"}}
    expected = run(stages, Tensors(file=stages.file), nodes)
    arrays = dict(np.load(stages.file))
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    stages.root = tmp_path / "mapped"
    assert run(stages, Npy(**{name: tmp_path / f"{name}.npy" for name in arrays}), nodes) == expected


@pytest.mark.parametrize("form", FORMATS)
def test_predictions_of_a_file_find_samples_by_the_names_of_pictures(
    stages: Any, student: Any, tmp_path: Path, form: str
) -> None:
    task = FORMATS[form](tmp_path / "packed", some_pictures())
    names = paths_by_id(task)
    assert names is not None
    logits = {name: np.eye(3)[index % 3] for index, name in enumerate(sorted(names.values()))}
    np.savez(tmp_path / "a.npz", ids=np.array(list(logits)), logits=np.array(list(logits.values())))
    targets = {"stage": "external_targets", "file": str(tmp_path / "a.npz"), "gives": "logits"}
    nodes = {"student": student | {"targets": "targets", "method": SOFT}}
    stages.plan = Plan.model_validate(
        {"name": "p", "task": task.model_dump(mode="json"), "stages": {"targets": targets, **nodes}}
    )
    stages.graph = order_stages(stages.plan)
    assert [stages.attempt(name).status for name in ("targets", "student")] == ["done", "done"]
