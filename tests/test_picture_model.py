"""What MLflow loads of a student: raw pictures in, what `predict` says of them out, and nothing is unpickled."""

import base64
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from packed_pictures import as_folders, some_pictures
from PIL import Image
from predicted import trained

from raydistill.errors import PlanError
from raydistill.inference.predict import predict_files
from raydistill.tracking.logged_model import export_student
from raydistill.tracking.store import import_mlflow

RANDOM = np.random.default_rng(0)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # MLflow's own classes for agents, met when `mlflow.pyfunc` is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage in `runs`, its model in MLflow's form in `logged`, and a turned picture."""
    root = tmp_path_factory.mktemp("student")
    task = as_folders(root / "data", some_pictures())
    stage = trained(task.model_dump(mode="json"), root / "runs")
    export_student(stage, root / "logged")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RANDOM.integers(0, 256, (20, 30, 3), np.uint8)).save(root / "a.jpg", exif=exif)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    import_mlflow()
    from mlflow.pyfunc import load_model

    return load_model(str(folder / "logged"))


def stage_of(folder: Path) -> Path:
    return next((folder / "runs/stages").glob("train-*"))


def expected(folder: Path) -> np.ndarray:
    (told,) = predict_files(stage_of(folder), [folder / "a.jpg"], top=3)
    return np.array([[dict(told.ranked)[name] for name in ("ant", "bee", "wasp")]])


def test_pictures_come_as_bytes_paths_text_or_a_column(folder: Path, model: Any) -> None:
    content = (folder / "a.jpg").read_bytes()
    text = base64.b64encode(content).decode()
    for given in (
        [content],
        content,
        [folder / "a.jpg"],
        [text],
        np.array([content], dtype=object),
        pd.DataFrame({"picture": [content]}),
        pd.Series([folder / "a.jpg"]),
    ):
        np.testing.assert_allclose(model.predict(given), expected(folder), atol=1e-6)
    assert model.predict([content, text]).shape == (2, 3)


def test_arrays_come_as_bytes_or_as_numbers_in_0_1(folder: Path, model: Any) -> None:
    pixels = RANDOM.integers(0, 256, (4, 3, 8, 8), np.uint8)
    np.save(folder / "pixels.npy", pixels)
    told = predict_files(stage_of(folder), [folder / "pixels.npy"], top=3)
    wanted = [[dict(row.ranked)[name] for name in ("ant", "bee", "wasp")] for row in told]
    for given in (pixels, (pixels / 255).astype(np.float32), list(pixels)):
        np.testing.assert_allclose(model.predict(given), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a.jpg"], "picture 0 is a text, and no base64; a path is a `pathlib.Path`"),
        ([b"no picture"], "picture 0 is not a readable picture"),
        (np.full((1, 3, 8, 8), 200.0), "pixels as numbers are in"),
        (np.zeros((1, 8, 8, 3)), "the model takes"),
        ([], "has the shape"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(model: Any, given: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words) as raised:
        model.predict(given)
    assert "\n" not in raised.value.message


def test_nothing_is_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.pyfunc import load_model

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(b"")
    load_model(str(folder / "logged"))


def test_torch_alone_loads_the_program_as_before(folder: Path) -> None:
    import torch
    from mlflow.pytorch import load_model

    pixels = torch.rand(2, 3, 8, 8)
    np.save(folder / "floats.npy", pixels.numpy())
    told = predict_files(stage_of(folder), [folder / "floats.npy"], top=3)
    wanted = [[dict(row.ranked)[name] for name in ("ant", "bee", "wasp")] for row in told]
    np.testing.assert_allclose(load_model(str(folder / "logged"))(pixels).detach(), wanted, atol=1e-6)


def test_it_says_what_it_is(folder: Path) -> None:
    told = yaml.safe_load((folder / "logged/MLmodel").read_text())
    assert told["metadata"]["outputs"]["class_names"] == ["ant", "bee", "wasp"]
    assert told["flavors"]["python_function"]["loader_module"] == "raydistill.tracking.picture_model"
    assert "raydistill==" in (folder / "logged/requirements.txt").read_text()


def test_a_model_of_numbers_keeps_its_signature(tmp_path: Path) -> None:
    from mlflow.models import get_model_info
    from mlflow.pyfunc import load_model

    inputs = RANDOM.random((42, 5), np.float32)
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=np.arange(42) % 2)
    task = {"name": "tensors", "file": str(tmp_path / "a.npz")}
    export_student(trained(task, tmp_path / "runs", {"name": "mlp", "widths": [4]}), tmp_path / "logged")
    assert get_model_info(str(tmp_path / "logged")).signature.inputs.inputs[0].shape == (-1, 5)
    assert load_model(str(tmp_path / "logged")).predict(inputs[:3]).shape == (3, 2)
