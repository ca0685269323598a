"""From a checkpoint and a folder of pictures to a student: the whole way, and what builders do that want a network."""

import json
import socket
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from torch import nn

from raydistill.cli import main
from raydistill.models.build import build_model
from raydistill.models.checkpoints import load_weights
from raydistill.models.weight_files import why_no_weights
from raydistill.plan.address import missing_module

PLAN = """\
name: from-my-teacher
task: {name: image_folder, folder: birds, image_size: 32, resize: 36, workers: 0, validation_fraction: 0.2}
stages:
  teacher: {stage: pretrained, model: {name: torchvision, architecture: resnet18}, weights: teacher.pth}
  student: {stage: distill, student: {name: resnet8}, teachers: [teacher], epochs: 6, batch_size: 32,
            optimizer: {name: sgd, learning_rate: 0.05}, method: {method: hinton, temperature: 4}}
"""


def draw_birds(folder: Path) -> None:
    """500 pictures of two kinds: bright above, or bright below."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 200), ("val", 50)):
        for kind in (0, 1):
            (folder / part / f"kind{kind}").mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 120, (36, 36, 3))
                pixels[18 * kind : 18 * (kind + 1)] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / f"kind{kind}" / f"{index}.png")


def train_elsewhere(folder: Path, file: Path) -> None:
    """A torchvision network, trained by a script of its owner's with its own way of reading pictures."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=2)
    files = sorted((folder / "train").rglob("*.png"))
    pictures = torch.stack([torch.from_numpy(np.asarray(Image.open(path)).copy()) for path in files])
    inputs = pictures[:, 2:34, 2:34].permute(0, 3, 1, 2).float() / 255
    inputs = (inputs - inputs.mean((0, 2, 3), keepdim=True)) / inputs.std((0, 2, 3), keepdim=True)
    labels = torch.tensor([int(path.parent.name[-1]) for path in files])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(2):
        for rows in torch.randperm(len(inputs)).split(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    torch.save({"epoch": 2, "model_state_dict": model.state_dict()}, file)


@pytest.mark.slow
def test_twelve_lines_lead_from_a_checkpoint_and_500_pictures_to_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(PLAN.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    draw_birds(tmp_path / "birds")
    train_elsewhere(tmp_path / "birds", tmp_path / "teacher.pth")
    Path("plan.yaml").write_text(PLAN)
    done = CliRunner().invoke(main, ["run", "plan.yaml", "--local", "--no-tracking"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    records = [json.loads(file.read_text()) for file in Path("runs/stages").glob("*/record.json")]
    judged = {
        record["kind"]: record["metrics"]["test/accuracy"]
        for record in records
        if "test/accuracy" in record["metrics"]
    }
    assert judged["pretrained"] > 0.95
    assert judged["distill"] > 0.9


def fetches(num_classes: int) -> Any:
    url = "https://weights.example/resnet.pth"
    raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"), url)


def fetches_inside(num_classes: int) -> Any:
    try:
        fetches(num_classes)
    except OSError as error:
        raise RuntimeError("the file could not be loaded") from error


@pytest.mark.parametrize("function", [fetches, fetches_inside])
def test_a_builder_that_wants_a_network_says_what_it_wanted(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydistill.models.build.load_function", lambda name: function)
    with pytest.raises(ValueError, match=r"wants to download `https://weights.example/resnet.pth`") as raised:
        build_model("nets:build", {}, (3, 8, 8), 2)
    assert "name the file as `weights`" in str(raised.value)


def test_torchvision_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*arguments: Any, **more: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(ValueError, match=r"wants to download `https://download.pytorch.org/models/resnet18"):
        build_model(
            "torchvision.models:resnet18", {"weights": "DEFAULT", "num_classes": 1000}, (3, 32, 32), 1000
        )


def test_another_failure_of_a_builder_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(num_classes: int) -> Any:
        raise KeyError("width")

    monkeypatch.setattr("raydistill.models.build.load_function", lambda name: build)
    with pytest.raises(KeyError, match="width"):
        build_model("nets:build", {}, (3, 8, 8), 2)


def test_a_library_that_is_not_there_comes_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raydistill.plan.address.find_module", lambda name: None)
    assert missing_module("timm") == "`timm` is not installed: `pip install timm`"
    assert (
        missing_module("open_clip.model")
        == "`open_clip.model` is not installed: `pip install open_clip_torch`"
    )
    assert "pip" not in str(missing_module("my_nets"))  # whoever took that name is a stranger


def test_timm_builds_a_network_for_weights_of_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    theirs = timm.create_model("resnet10t", num_classes=3)
    wrapped = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "t.pth")
    ours = build_model("timm:create_model", {"model_name": "resnet10t"}, (3, 32, 32), 3)
    load_weights(ours, tmp_path / "t.pth")
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours.eval()(inputs), theirs.eval()(inputs))


def test_weights_that_were_saved_on_a_gpu_are_read_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(4, 3)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save(model.state_dict(), tmp_path / "t.pth")
    other = nn.Linear(4, 3)
    load_weights(other, tmp_path / "t.pth")
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize("address", ["models:/teacher/3", "runs:/0123456789abcdef/model"])
def test_an_address_of_mlflow_says_how_to_fetch_it(address: str) -> None:
    problem = str(why_no_weights(Path(address)))
    assert f"`mlflow artifacts download -u {address} -d fetched`" in problem
