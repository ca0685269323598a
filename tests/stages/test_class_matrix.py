"""A matrix with an embedding of each class makes logits of a network's embedding, as CLIP's texts do."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import Tensor, nn

from raydistill.errors import PlanError, StoreError
from raydistill.kinds.survey import ProbedModel
from raydistill.models.outputs import match_classes
from raydistill.stages.model_probe import probe_model, store_sizes, two_samples
from raydistill.training.model_files import load_received

OWN = """
from torch import nn
def build(num_classes, width=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width))
"""
Write = Callable[..., dict[str, Any]]


class Same(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


@pytest.mark.parametrize("normalize", [True, False])
def test_logits_are_products_with_rows_by_hand_and_by_torch(normalize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, matrix = (torch.randn(n, 4, generator=generator) for n in (6, 3))
    model = match_classes(Same(), matrix, 100.0, normalize)
    found = model(embedding)
    ours, theirs = (F.normalize(each, dim=1) if normalize else each for each in (embedding, matrix))
    torch.testing.assert_close(found, 100 * ours @ theirs.T)
    for mine, row in zip(embedding.tolist(), found.tolist(), strict=True):
        for other, value in zip(matrix.tolist(), row, strict=True):
            product = sum(a * b for a, b in zip(mine, other, strict=True))
            lengths = math.hypot(*mine) * math.hypot(*other) if normalize else 1
            assert value == pytest.approx(100 * product / lengths, rel=1e-4, abs=1e-4)
    with pytest.raises(
        ValueError, match=r"gives numbers of the shape \(3,\) for each sample, and the rows .* have 4"
    ):
        model(embedding[:, :3])


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(3, 5)).astype(np.float32)


@pytest.fixture
def teacher(stages: Any, users_models: Callable[[str], str], tmp_path: Path) -> Write:
    """A network that somebody trained to give five numbers, as a stage."""
    torch.manual_seed(1)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).state_dict(), tmp_path / "five.pth")
    address = f"{users_models(OWN)}:build"

    def stage(**classes: Any) -> dict[str, Any]:
        model = {"name": address, "classes": classes}
        return {"stage": "pretrained", "model": model, "weights": str(tmp_path / "five.pth")}

    return stage


def written(folder: Path, matrix: np.ndarray, name: str = "texts.npy") -> str:
    file = folder / name
    if file.suffix == ".npy":
        np.save(file, matrix)
    elif file.suffix == ".npz":
        np.savez(file, texts=matrix, other=matrix[:1])
    else:
        save_file({"texts": matrix}, file)
    return str(file)


def embeddings(stages: Any, folder: Path) -> Tensor:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    network.load_state_dict(torch.load(folder / "five.pth", weights_only=True))
    inputs = torch.from_numpy(np.load(stages.file)["inputs"])
    with torch.no_grad():
        return network(stages.plan.task.load().normalisation(inputs))


@pytest.mark.parametrize("name", ["texts.npy", "texts.npz", "texts.safetensors"])
def test_a_teacher_of_embeddings_answers_in_classes_and_keeps_them_without_the_file(
    stages: Any, teacher: Write, matrix: np.ndarray, tmp_path: Path, name: str
) -> None:
    file = written(tmp_path, matrix, name)
    more = {"array": "texts"} if name.endswith("npz") else {}
    stages.run({"teacher": teacher(matrix=file, scale=20, **more)})
    Path(file).unlink()
    expected = (
        20 * F.normalize(embeddings(stages, tmp_path), dim=1) @ F.normalize(torch.from_numpy(matrix), dim=1).T
    )
    torch.testing.assert_close(stages.logits("teacher"), expected, rtol=1e-4, atol=1e-4)
    described = json.loads((stages.folder("teacher").path / "model.json").read_text())
    assert described["model"]["classes"]["matrix"] is None


def test_classes_are_found_by_their_names_and_groups_of_them_add_up(
    stages: Any, teacher: Write, matrix: np.ndarray, tmp_path: Path
) -> None:
    stages.write({"any": {"stage": "train", "epochs": 1, "model": {"name": "mlp"}}})
    own = list(stages.plan.task.class_names)
    order = [2, 0, 1]
    shuffled = written(tmp_path, matrix[order], "shuffled.npy")
    six = written(tmp_path, np.concatenate([matrix, 2 - matrix]), "six.npy")
    names = [*own, "x", "y", "z"]
    groups = {own[0]: [own[0], "x"], own[1]: [own[1]], own[2]: [own[2], "z"]}
    stages.run(
        {
            "plain": teacher(matrix=written(tmp_path, matrix), scale=5),
            "named": teacher(matrix=shuffled, names=[own[i] for i in order], scale=5),
            "grouped": teacher(matrix=six, names=names, map=groups, scale=5),
        }
    )
    torch.testing.assert_close(stages.logits("named"), stages.logits("plain"))
    rows = F.normalize(torch.from_numpy(np.concatenate([matrix, 2 - matrix])), dim=1).double()
    shares = (5 * F.normalize(embeddings(stages, tmp_path).double(), dim=1) @ rows.T).softmax(1)
    picked = torch.stack([shares[:, [0, 3]].sum(1), shares[:, 1], shares[:, [2, 5]].sum(1)], dim=1)
    expected = picked / picked.sum(1, keepdim=True)
    torch.testing.assert_close(stages.logits("grouped").softmax(1).double(), expected, rtol=1e-3, atol=1e-5)
    assert 0 < stages.record("grouped").metrics["validation/unmapped"] < 1
    assert stages.record("plain").metrics["validation/unmapped"] == 0


def test_it_teaches_and_a_student_may_give_embeddings_too(
    stages: Any, teacher: Write, matrix: np.ndarray, tmp_path: Path, student: dict[str, Any]
) -> None:
    texts = {"matrix": written(tmp_path, matrix), "scale": 20}
    own = student | {"student": {"name": "mlp", "widths": [6], "classes": texts}}
    plan = {"teacher": teacher(**texts), "student": student | {"teachers": ["teacher"]}}
    stages.run(plan | {"own": own | {"teachers": ["teacher"], "mode": "live"}})
    state = stages.model("own").model.state_dict()
    assert torch.equal(state["class_matrix"], F.normalize(torch.from_numpy(matrix), dim=1))
    assert stages.logits("own").shape == (150, 3)
    assert stages.logits("own").abs().max() <= 20.001


def test_the_content_of_the_matrix_is_identity_and_its_place_is_not(
    stages: Any, teacher: Write, matrix: np.ndarray, tmp_path: Path
) -> None:
    files = [
        written(tmp_path, matrix, "a.npy"),
        written(tmp_path, matrix, "b.npy"),
        written(tmp_path, -matrix, "c.npy"),
    ]
    plan = {f"t{index}": teacher(matrix=file) for index, file in enumerate(files)}
    one, same, other = (node.fingerprint for node in stages.write(plan).nodes.values())
    assert one == same != other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m[:2], "has 2 rows, and the task has 3 classes"),
        (lambda m: m[0], r"holds float32 of the shape (5,), not a matrix"),
        (lambda m: m * np.array([[1], [0], [1]]), "is all 0: it has no direction"),
        (lambda m: m * np.nan, "holds numbers that are not finite"),
        (lambda m: m.astype(str), "not a matrix of numbers"),
        (None, "there is no file"),
    ],
)
def test_a_matrix_that_does_not_suit_is_said_when_the_plan_is_read(
    stages: Any, teacher: Write, matrix: np.ndarray, tmp_path: Path, change: Any, said: str
) -> None:
    file = str(tmp_path / "none.npy") if change is None else written(tmp_path, change(matrix))
    with pytest.raises(PlanError) as caught:
        stages.write({"teacher": teacher(matrix=file)})
    assert said in str(caught.value)
    assert "stages.teacher.model.classes" in str(caught.value)


def test_two_arrays_want_a_name(stages: Any, teacher: Write, matrix: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has 2 arrays, `texts`, `other`; say which with `array`"):
        stages.write({"teacher": teacher(matrix=written(tmp_path, matrix, "texts.npz"))})


def test_another_width_is_found_before_work(
    stages: Any, teacher: Write, matrix: np.ndarray, tmp_path: Path
) -> None:
    stage = teacher(matrix=written(tmp_path, matrix[:, :4]))
    stages.write({"teacher": stage})
    data = stages.plan.task.load()
    model = stages.graph.nodes["teacher"].config.model
    probed = ProbedModel(stages=("teacher",), model=model, num_classes=3, is_trained=False)
    error = probe_model(probed, stages.plan.task, data, two_samples(data, "cpu")).error
    assert error is not None
    assert (
        "gives numbers of the shape (5,) for each sample, and the rows of the matrix of classes have 4"
        in error
    )
    assert "\n" not in error


def test_the_width_of_a_feature_is_known_without_weights(
    stages: Any, matrix: np.ndarray, tmp_path: Path
) -> None:
    texts = {"matrix": written(tmp_path, matrix)}
    small = {"name": "mlp", "widths": [6], "classes": texts}
    soft = {"stage": "predict_targets", "teacher": "teacher", "outputs": ["logits", "embedding"]}
    graph = stages.write({"teacher": {"stage": "train", "epochs": 1, "model": small}, "soft": soft})
    (told,) = store_sizes(graph, stages.plan.task)
    assert told == "`soft` stores 46 bytes per sample: `logits` 10, `embedding` 12, and 12 each for its id"


def test_products_are_of_whole_precision_under_autocast() -> None:
    embedding, matrix = (torch.randn(n, 40, generator=torch.Generator().manual_seed(n)) for n in (6, 3))
    model = match_classes(Same(), matrix, 100.0, True)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(embedding)
    assert torch.equal(found, model(embedding))


def test_a_received_model_reads_no_matrix_from_elsewhere(
    stages: Any, matrix: np.ndarray, tmp_path: Path, teacher: Write
) -> None:
    texts = {"matrix": written(tmp_path, matrix)}
    small = {"name": "mlp", "widths": [6], "classes": texts}
    stages.run({"student": {"stage": "train", "epochs": 1, "model": small}})
    folder = tmp_path / "received"
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        (folder / name).write_bytes((stages.folder("student").path / name).read_bytes())
    inputs = torch.from_numpy(np.load(stages.file)["inputs"])
    assert torch.equal(load_received(folder).logits(inputs), stages.logits("student"))
    described = json.loads((folder / "model.json").read_text())
    described["model"]["classes"] |= texts
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(StoreError, match="the matrix of `classes` is not among the weights"):
        load_received(folder)
