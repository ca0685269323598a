import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from raydistill.cli import main
from raydistill.errors import StoreError
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.scheduler import run_stages
from raydistill.inference.form import Form
from raydistill.inference.predict import predict_files, read_inputs
from raydistill.models.build import build_model
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.prediction import evaluate_model, load_model
from raydistill.tasks.mnist import Mnist


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small network trained on the embedded digits."""
    root = tmp_path_factory.mktemp("runs")
    stages = {"student": {"stage": "train", "model": {"name": "mlp", "widths": [30]}, "epochs": 1}}
    plan = Plan.model_validate({"name": "tiny", "task": {"name": "mnist"}, "stages": stages})
    graph = order_stages(plan)
    run_stages(graph, LocalBackend(), task=plan.task, root=root)
    return root / graph.nodes["student"].folder


def digits(count: int) -> np.ndarray:
    """Raw test digits (N, 1, 28, 28) uint8."""
    from raydistill.plan.schema import build_task

    return build_task({"name": "mnist"}).load().test.inputs[:count].numpy()


def test_probabilities_are_those_of_the_plain_network(student: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "digits.npy", digits(7))
    predictions = list(predict_files(student, [tmp_path / "digits.npy"], top=10))
    network = build_model("mlp", {"widths": [30]}, (1, 28, 28), 10)
    network.load_state_dict(load_file(student / "model.safetensors"))
    known = load_model(student).normalisation
    inputs = (torch.from_numpy(digits(7)).float() / 255 - known.mean) / known.std
    expected = torch.softmax(network.eval()(inputs), dim=1)
    for prediction, row in zip(predictions, expected, strict=True):
        assert dict(prediction.ranked) == pytest.approx({str(c): row[c].item() for c in range(10)}, abs=1e-6)


def test_an_image_file_gives_what_its_array_gives(student: Path, tmp_path: Path) -> None:
    pixels = digits(1)[0, 0]
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "colour.png")
    np.save(tmp_path / "digit.npy", pixels[None])
    ranked = [
        next(predict_files(student, [tmp_path / name])).ranked
        for name in ("digit.png", "colour.png", "digit.npy")
    ]
    assert ranked[0] == ranked[1] == ranked[2]


def test_evaluation_agrees_with_the_record(student: Path) -> None:
    from raydistill.runs.folder import StageFolder

    recorded = StageFolder(student).done_record().metrics
    for split in ("validation", "test"):
        judged = evaluate_model(student, split)
        assert judged["errors"] == recorded[f"{split}/errors"]
        assert judged["loss"] == pytest.approx(recorded[f"{split}/loss"], abs=1e-5)


def test_a_damaged_model_is_not_used(student: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / student.name
    shutil.copytree(student, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(StoreError, match="damaged"):
        load_model(copy)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.png", b"no image", "is not a readable picture: its content has no known format"),
        ("text.npy", b"no array", "no array of numbers"),
        ("missing.png", None, "does not exist"),
    ],
)
def test_an_input_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (raw,) = read_inputs([tmp_path / name], Form(Mnist(), (1, 28, 28)))
    assert not len(raw.values)
    assert words in raw.errors[0]
    assert name in raw.errors[0]


def test_an_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((2, 1, 28, 30), np.float32))
    (raw,) = read_inputs([tmp_path / "wide.npy"], Form(Mnist(), (1, 28, 28)))
    assert "(2, 1, 28, 30)" in raw.errors[0]


def test_a_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (raw,) = read_inputs([tmp_path / "objects.npy"], Form(Mnist(), (1, 28, 28)))
    assert "no array of numbers" in raw.errors[0]


def test_the_command_writes_a_table(student: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "digits.npy", digits(4))
    table = tmp_path / "labels.csv"
    result = CliRunner().invoke(
        main, ["predict", str(student), str(tmp_path / "digits.npy"), "--top", "2", "--output", str(table)]
    )
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2"] * 4
    assert all(
        float(a["probability"]) >= float(b["probability"]) for a, b in zip(rows[::2], rows[1::2], strict=True)
    )


def test_a_folder_without_a_model_is_a_wrong_argument(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["predict", str(tmp_path), "digit.png"])
    assert result.exit_code == 2
    assert "holds no model" in result.output


def test_integers_that_stand_for_things_stay_integers(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.array([[3, 255]], np.uint8))
    np.save(tmp_path / "parts.npy", np.array([[0.5, 2.0]], np.float32))
    (words,) = read_inputs([tmp_path / "few.npy"], Form(Mnist(), (2,), torch.int64))
    assert words.values is not None
    assert (words.raw.dtype, words.raw.tolist()) == (torch.int64, [[3, 255]])
    (parts,) = read_inputs([tmp_path / "parts.npy"], Form(Mnist(), (2,), torch.int64))
    assert "float32; the model takes integers" in parts.errors[0]
