"""Model folders from somebody else: they build networks of ours and torchvision's, and call nothing that they name."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file, save_model

from raydistill.cli import main
from raydistill.models.build import build_model

EVIL = """\
from pathlib import Path

import torch

Path(__file__).with_name("ran").touch()

def build(num_classes, **options):
    Path(__file__).with_name("ran").touch()
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, num_classes))
"""
COMMANDS = ("predict", "evaluate", "export")


def description(model: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "model": {"num_classes": None, "options": {}, **model},
        "num_classes": 2,
        "input_shape": [1, 2, 2],
        "class_names": ["ant", "bee"],
        "inputs": "as they come",
        "input_dtype": "float32",
        "mean": 0.0,
        "std": 1.0,
        "task": {"name": "mnist"},
        **more,
    }


@pytest.fixture
def received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that came by mail, and is the working folder: a network with four inputs, and an input for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(description({"name": "mlp", "options": {"widths": []}})))
    save_model(build_model("mlp", {"widths": []}, (1, 2, 2), 2), str(tmp_path / "model.safetensors"))
    (tmp_path / "evil_nets.py").write_text(EVIL)
    np.save(tmp_path / "input.npy", np.zeros((1, 2, 2), np.float32))
    yield tmp_path
    for module in ("evil_nets", "fine_nets"):
        sys.modules.pop(module, None)


def names(folder: Path, model: str, /, **options: Any) -> None:
    """The folder now names this model."""
    (folder / "model.json").write_text(json.dumps(description({"name": model, "options": options})))


def distill(command: str, folder: Path | str, *words: str) -> Result:
    own = {"predict": ["input.npy"], "evaluate": [], "export": ["exported"]}[command]
    return CliRunner().invoke(main, [command, str(folder), *own, *words])


def imitate_stage(folder: Path, stage: Path) -> None:
    """The same model as a stage of a storage root, with record and checksums."""
    from raydistill.runs.folder import StageFolder
    from raydistill.runs.record import Record

    stage.mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        shutil.copyfile(folder / name, stage / name)
    kind, _, fingerprint = stage.name.partition("-")
    identity = {"kind": kind, "version": 1, "task": {}, "config": {}}
    (stage / "config.json").write_text(json.dumps(identity))
    payload = StageFolder(stage).checksums(["model.json", "model.safetensors"])
    StageFolder(stage).write_record(
        Record(kind=kind, fingerprint=fingerprint, status="done", seconds=1, finished=1, payload=payload)
    )


@pytest.mark.parametrize("nested", [False, True])
def test_no_file_of_class_names_is_opened(received: Path, nested: bool) -> None:
    (received / "private.txt").write_text("secret\nsecret\n")
    classes: Any = {"names": "private.txt"} if nested else "private.txt"
    model = {"name": "mlp", "options": {"widths": []}, "classes": classes}
    (received / "model.json").write_text(json.dumps(description(model)))
    result = distill("predict", received)
    assert result.exit_code != 0
    assert "not written out" in result.output
    assert "secret" not in result.output


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["evil_nets:build", "torch.hub:load", "os:system"])
def test_a_function_that_a_received_folder_names_is_not_called(
    received: Path, command: str, name: str
) -> None:
    (received / "hubconf.py").write_text(EVIL)
    options = {
        "torch.hub:load": {"repo_or_dir": str(received), "model": "build", "source": "local"},
        "os:system": {"command": "touch ran"},
    }
    names(received, name, **options.get(name, {}))
    result = distill(command, received)
    assert not (received / "ran").exists()
    assert "evil_nets" not in sys.modules
    assert result.exit_code == 2
    assert f"`{name}`" in result.stderr
    assert "--trust" in result.stderr


def test_a_folder_that_imitates_a_stage_is_received_all_the_same(received: Path) -> None:
    names(received, "evil_nets:build")
    imitate_stage(received, received / "theirs" / "stages" / "train-0123456789ab")
    assert distill("predict", "theirs/stages/train-0123456789ab").exit_code == 2
    assert not (received / "ran").exists()


def test_a_link_in_a_storage_root_leads_to_no_stage_of_it(received: Path) -> None:
    names(received, "evil_nets:build")
    imitate_stage(received, received / "theirs" / "stages" / "train-0123456789ab")
    (received / "runs" / "stages").mkdir(parents=True)
    (received / "runs" / "stages" / "train-0123456789ab").symlink_to(
        received / "theirs" / "stages" / "train-0123456789ab"
    )
    assert distill("predict", "runs/stages/train-0123456789ab").exit_code == 2
    assert not (received / "ran").exists()


def test_the_members_of_a_received_ensemble_are_received_too(received: Path) -> None:
    names(received, "evil_nets:build")
    imitate_stage(received, received / "theirs" / "stages" / "train-0123456789ab")
    together = received / "theirs" / "stages" / "evaluate-ba9876543210"
    together.mkdir()
    config = {"models": [{"input": "0123456789ab"}], "rule": "arithmetic", "weights": "uniform"}
    identity = {"kind": "evaluate", "version": 1, "task": {}, "config": config}
    (together / "config.json").write_text(json.dumps(identity))
    assert distill("predict", together).exit_code == 2
    assert not (received / "ran").exists()


def test_files_beside_a_received_model_stand_for_no_module(received: Path) -> None:
    assert distill("predict", ".").exit_code == 0
    assert str(received) not in sys.path


def test_a_stage_of_the_storage_root_in_use_calls_what_its_plan_named(received: Path) -> None:
    names(received, "evil_nets:build")
    save_file(
        {"1.weight": torch.zeros(2, 4), "1.bias": torch.tensor([0.0, 9.0])}, received / "model.safetensors"
    )
    for root, words in (("runs", ()), ("other", ("--runs", "other"))):
        imitate_stage(received, received / root / "stages" / "train-0123456789ab")
        result = distill("predict", f"{root}/stages/train-0123456789ab", *words)
        assert result.exit_code == 0, result.output
        assert "bee 0.9999" in result.output


def test_trust_lets_a_module_in_by_name(received: Path) -> None:
    names(received, "evil_nets:build")
    save_file(
        {"1.weight": torch.zeros(2, 4), "1.bias": torch.tensor([0.0, 9.0])}, received / "model.safetensors"
    )
    assert distill("predict", received, "--trust", "evil").exit_code == 2
    assert distill("predict", received, "--trust", "evil_nets.more").exit_code == 2
    result = distill("predict", received, "--trust", "numpy", "--trust", "evil_nets")
    assert result.exit_code == 0, result.output


def test_what_a_trusted_module_merely_imports_is_not_trusted(received: Path) -> None:
    (received / "fine_nets.py").write_text("from os import system\nfrom torch.hub import load\n")
    names(received, "fine_nets:load", repo_or_dir=str(received), model="build", source="local")
    result = distill("predict", received, "--trust", "fine_nets")
    assert (result.exit_code, "`torch.hub`" in result.stderr) == (2, True), result.output


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "regnet_y_400mf"])
def test_no_file_that_the_options_name_is_opened(received: Path, architecture: str) -> None:
    options = {"architecture": architecture, "weights": "absent.pth"}
    task = {"name": "torchvision", "options": options}
    shape = {"input_shape": [3, 32, 32]}
    (received / "model.json").write_text(json.dumps(description(task, **shape)))
    network = build_model("torchvision", {"architecture": architecture}, (3, 32, 32), 2)
    save_model(network, str(received / "model.safetensors"))
    np.save(received / "input.npy", np.zeros((3, 32, 32), np.float32))
    result = distill("predict", received)
    assert result.exit_code == 0, result.output  # the folder's own weights take the place of all others


def test_a_description_cannot_ask_for_a_picture_that_fills_the_memory(received: Path) -> None:
    wanted = {"name": "mlp", "options": {"widths": []}, "input": {"size": 2, "resize": 2048}}
    (received / "model.json").write_text(json.dumps(description(wanted, input_shape=[1, 1, 2**20])))
    result = distill("predict", received)
    assert (result.exit_code, "too large to hold" in result.stderr) == (1, True), result.output


@pytest.mark.parametrize("command", [*COMMANDS])
def test_help_says_what_a_received_folder_may_do(command: str) -> None:
    said = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    assert "builds only networks of ours and of torchvision" in said
