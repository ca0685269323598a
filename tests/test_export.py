"""What leaves the house: program, MLflow model and `predict` are one function, and say what it takes."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from raydistill.errors import PlanError
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.scheduler import run_stages
from raydistill.export import export_model
from raydistill.inference.predict import predict_files
from raydistill.model_card import contract
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan, build_task
from raydistill.prediction import load_model
from raydistill.tracking.logged_model import export_students

pytestmark = [
    # MLflow's own classes for agents, met when `mlflow.pyfunc` is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

SHIFT = {"prior": 0.4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small network that never saw the digit 3, and the same one with that class's logit shifted."""
    root = tmp_path_factory.mktemp("runs")
    train = {"stage": "train", "model": {"name": "mlp", "widths": [30]}, "epochs": 1}
    stages = {
        "student": train | {"transfer": {"omit_classes": [3]}},
        "adjusted": {"stage": "adjust_class_bias", "model": "student", "classes": [3], **SHIFT},
    }
    plan = Plan.model_validate({"name": "tiny", "task": {"name": "mnist"}, "stages": stages})
    graph = order_stages(plan)
    run_stages(graph, LocalBackend(), task=plan.task, root=root)
    return {name: root / node.folder for name, node in graph.nodes.items()}


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """Raw test digits (7, 1, 28, 28) uint8."""
    inputs: Tensor = build_task({"name": "mnist"}).load().test.inputs[:7]
    return inputs


def predicted(folder: Path, digits: Tensor, scratch: Path) -> np.ndarray:
    """Probabilities (N, 10) as `distill predict` gives them, in the order of the classes."""
    np.save(scratch / "digits.npy", digits.numpy())
    rows = [dict(row.ranked) for row in predict_files(folder, [scratch / "digits.npy"], top=10)]
    return np.array([[row[str(label)] for label in range(10)] for row in rows])


def test_the_exported_program_gives_what_predict_gives(
    folders: dict[str, Path], digits: Tensor, tmp_path: Path
) -> None:
    for name, folder in folders.items():
        export_model(folder, tmp_path / name)
        program: Any = torch.export.load(tmp_path / name / "model.pt2").module()
        ours = predicted(folder, digits, tmp_path)
        np.testing.assert_allclose(program(digits / 255).detach().numpy(), ours, atol=1e-6)
        np.testing.assert_allclose(program(digits[:1] / 255).detach().numpy(), ours[:1], atol=1e-6)
        np.testing.assert_allclose(predicted(tmp_path / name, digits, tmp_path), ours, atol=1e-6)


def test_an_adjusted_student_is_logged_adjusted(
    folders: dict[str, Path], digits: Tensor, tmp_path: Path
) -> None:
    from mlflow.models import get_model_info
    from mlflow.pyfunc import load_model as load_logged

    target = tmp_path / "adjusted"
    export_students([{"stage": str(folders["adjusted"]), "to": str(target)}])
    assert json.loads((tmp_path / "adjusted.json").read_text()) == {"error": None}
    logged = load_logged(str(target)).predict((digits / 255).numpy())
    np.testing.assert_allclose(logged, predicted(folders["adjusted"], digits, tmp_path), atol=1e-6)
    assert np.abs(logged - predicted(folders["student"], digits, tmp_path)).max() > 0.01

    info = get_model_info(str(target))
    assert info.metadata == contract(load_model(folders["adjusted"]))
    assert info.signature.inputs is None  # paths, bytes or arrays: MLflow has no type for either of them
    assert info.signature.outputs.input_names() == ["probabilities"]


def test_the_program_takes_no_grey_levels_for_pixels(
    folders: dict[str, Path], digits: Tensor, tmp_path: Path
) -> None:
    export_model(folders["student"], tmp_path / "exported")
    program: Any = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    with pytest.raises(RuntimeError, match="dtype"):
        program(digits)


def test_what_is_exported_says_what_it_takes_and_gives(folders: dict[str, Path], tmp_path: Path) -> None:
    export_model(folders["student"], tmp_path / "exported")
    inside = {"contract.json": ""}
    torch.export.load(tmp_path / "exported" / "model.pt2", extra_files=inside)
    told = json.loads(inside["contract.json"])
    assert told["inputs"]["shape"] == ["batch", 1, 28, 28]
    assert "divided by 255" in told["inputs"]["values"]
    assert told["outputs"]["class_names"] == [str(label) for label in range(10)]
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "float32 (batch, 1, 28, 28)" in card
    assert "probabilities" in card


def test_an_export_never_overwrites(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(PlanError, match="not empty"):
        export_model(folders["student"], tmp_path)


def test_a_picture_prepared_as_the_page_says_gets_from_the_program_what_predict_gives(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part, name in product(("train", "val"), ("ant", "bee")):
        (tmp_path / "data" / part / name).mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{number}.png")
    task = {
        "name": "image_folder",
        "folder": str(tmp_path / "data"),
        "image_size": 16,
        "resize": 20,
        "workers": 0,
    }
    stages = {"model": {"stage": "train", "model": {"name": "mlp", "widths": [8]}, "epochs": 1}}
    plan = Plan.model_validate({"name": "tiny", "task": task, "stages": stages})
    graph = order_stages(plan)
    run_stages(graph, LocalBackend(), task=plan.task, root=tmp_path / "runs")
    folder = tmp_path / "runs" / graph.nodes["model"].folder
    export_model(folder, tmp_path / "exported")
    page = (tmp_path / "exported" / "README.md").read_text()
    assert "the central square, 16 of 20 parts of its shorter side, scaled bilinearly to 16 x 16" in page

    file = tmp_path / "data" / "val" / "ant" / "0.png"
    box = (8, 3, 32, 27)  # 16 of 20 parts of 30 are 24, in the middle of 40 x 30
    with Image.open(file) as image:
        prepared = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, box=box))
    program: Any = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    (given,) = program(torch.from_numpy(prepared.copy()).permute(2, 0, 1).unsqueeze(0) / 255).tolist()
    (ours,) = predict_files(folder, [file])
    assert dict(ours.ranked) == pytest.approx(dict(zip(("ant", "bee"), given, strict=True)), abs=1e-6)
