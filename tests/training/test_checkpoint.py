"""Checkpoints that are damaged, torn or foreign are named and never used; whole ones bring everything back."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raydistill.training.checkpoint import load_checkpoint, remove_checkpoint
from raydistill.training.optimizer import build_optimizer, build_schedule

STOPPED_AT = 7


def state_path(folder: Path) -> Path:
    return folder / "checkpoint.json"


def tensors_path(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)


def load(bench: Any, model: nn.Module, name: str = "train-0") -> dict[str, Any] | None:
    """Load into `model`, prepared as the loop prepares it."""
    config = bench.settings()
    optimizer = build_optimizer(config.optimizer, model.parameters())
    schedule = build_schedule(config.schedule, optimizer, 3, 5)
    learner = nn.Module()
    learner.model = model
    saved = load_checkpoint(bench.root / name / "checkpoint", learner, optimizer, schedule, {})
    return None if saved is None else saved[0]


@pytest.fixture
def stopped(bench: Any) -> Path:
    """The checkpoint folder of a training that stopped."""
    bench.stopped(bench.mlp(), STOPPED_AT)
    folder: Path = bench.root / "train-0/checkpoint"
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


def remove_tensors(folder: Path) -> None:
    tensors_path(folder).unlink()


def tear_json(folder: Path) -> None:
    text = state_path(folder).read_text()
    state_path(folder).write_text(text[: len(text) // 2])


def name_another_file(folder: Path) -> None:
    """Somebody edits the state, so that it points elsewhere."""
    state = json.loads(state_path(folder).read_text())
    state["tensors"] = "../../../elsewhere.safetensors"
    state_path(folder).write_text(json.dumps(state))


def become_something_else(folder: Path) -> None:
    state_path(folder).write_text("[1, 2, 3]")


DAMAGES = [
    lambda folder: truncate(tensors_path(folder)),
    lambda folder: truncate(state_path(folder)),
    lambda folder: empty(tensors_path(folder)),
    lambda folder: empty(state_path(folder)),
    lambda folder: flip_a_bit(tensors_path(folder)),
    lambda folder: flip_a_bit(state_path(folder)),
    remove_tensors,
    tear_json,
    name_another_file,
    become_something_else,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_training_starts_anew(
    bench: Any, stopped: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    whole = bench.train(bench.mlp(), "train-1")
    damage(stopped)
    with caplog.at_level(logging.WARNING):
        assert same_weights(bench.train(bench.mlp()), whole)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(stopped) in warning
    assert "starting from the beginning" in warning
    assert bench.metrics() == bench.metrics("train-1")


@pytest.mark.parametrize("file", [tensors_path, state_path])
def test_one_flipped_bit_anywhere_is_noticed_before_a_weight_changes(
    bench: Any, stopped: Path, file: Callable[[Path], Path]
) -> None:
    path, model, fresh = file(stopped), bench.mlp(), bench.mlp()
    content = path.read_bytes()
    places = range(0, len(content), max(1, len(content) // 150))
    for number, place in enumerate(places):
        changed = bytearray(content)
        changed[place] ^= 1 << number % 8
        path.write_bytes(bytes(changed))
        assert load(bench, model) is None, f"bit {number % 8} of byte {place}"
    assert same_weights(model, fresh)
    path.write_bytes(content)
    assert load(bench, model) is not None
    assert not same_weights(model, fresh)


def test_a_checkpoint_of_another_model_is_refused_before_a_weight_changes(
    bench: Any, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, fresh = bench.cnn(), bench.cnn()
    assert load(bench, model) is None
    assert same_weights(model, fresh)
    assert "belongs to another model" in caplog.text


def test_a_checkpoint_of_another_stage_is_refused_though_the_model_is_the_same(
    bench: Any, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.root / "train-1").mkdir()
    stopped.rename(bench.root / "train-1/checkpoint")
    whole = bench.train(bench.mlp(), "train-2", seed=4)
    assert same_weights(bench.train(bench.mlp(), "train-1", seed=4), whole)
    assert "belongs to another stage, `train-0`" in caplog.text


def test_a_kill_between_the_two_files_leaves_the_checkpoint_before(bench: Any, stopped: Path) -> None:
    whole = bench.train(bench.mlp(), "train-1")
    newer = stopped / "step-9.safetensors"
    newer.write_bytes(tensors_path(stopped).read_bytes()[:100])
    (stopped / ".step-9.safetensors.1234.tmp").write_bytes(b"half")
    progress = load(bench, bench.mlp())
    assert progress is not None
    assert progress["step"] == STOPPED_AT
    assert same_weights(bench.train(bench.mlp()), whole)


def test_a_checkpoint_holds_no_pickle_and_only_the_last_state(bench: Any, stopped: Path) -> None:
    bench.stopped(bench.mlp(), 2)
    assert sorted(path.name for path in stopped.iterdir()) == ["checkpoint.json", "step-9.safetensors"]
    json.loads(state_path(stopped).read_text())
    for path in bench.root.rglob("*"):
        assert path.is_dir() or path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")


def test_tied_weights_are_stored_and_stay_tied(bench: Any) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
        model[2].weight = model[1].weight
        return model

    torch.manual_seed(0)
    fresh = tied().state_dict()
    models = [tied(), tied(), tied()]
    for model in models:
        model.load_state_dict(fresh)
    whole = bench.train(models[0], "train-1")
    bench.stopped(models[1], STOPPED_AT)
    resumed = bench.train(models[2])
    assert same_weights(resumed, whole)
    assert torch.equal(resumed[1].weight, resumed[2].weight)


def test_optimizer_state_keeps_the_layout_of_its_weights(bench: Any) -> None:
    bench.channels_last = True
    bench.stopped(bench.cnn(), STOPPED_AT)
    model = bench.cnn().to(memory_format=torch.channels_last)
    config = bench.settings()
    optimizer = build_optimizer(config.optimizer, model.parameters())
    learner = nn.Module()
    learner.model = model
    schedule = build_schedule(config.schedule, optimizer, 3, 5)
    assert load_checkpoint(bench.root / "train-0/checkpoint", learner, optimizer, schedule, {})
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    for parameter, slots in optimizer.state.items():
        assert slots["momentum_buffer"].stride() == parameter.stride()


def test_which_kernels_step_is_not_the_checkpoints_to_say(bench: Any) -> None:
    """One of a device that fuses them goes on where that is not done, and the other way."""
    bench.stopped(bench.mlp(), STOPPED_AT)
    model, config = bench.mlp(), bench.settings()
    optimizer = build_optimizer(config.optimizer, model.parameters(), fused=True)
    learner = nn.Module()
    learner.model = model
    schedule = build_schedule(config.schedule, optimizer, 3, 5)
    assert load_checkpoint(bench.root / "train-0/checkpoint", learner, optimizer, schedule, {})
    assert [group["fused"] for group in optimizer.param_groups] == [True]


def test_a_removed_checkpoint_leaves_no_folder(bench: Any, stopped: Path) -> None:
    remove_checkpoint(stopped)
    assert not stopped.exists()
    remove_checkpoint(stopped)
    assert load(bench, bench.mlp()) is None
