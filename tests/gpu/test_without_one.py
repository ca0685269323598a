"""How data reaches a device, on the twin; and that the twin refuses what a GPU refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import raydistill
from raydistill import models, tasks
from raydistill.models.own_input import OwnInput, see_for_itself
from raydistill.models.programs import open_program
from raydistill.tasks.devices import all_to_device, to_device
from raydistill.tasks.folder_split import FolderSplit
from raydistill.tasks.frame_split import FrameSplit
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.mapped_split import MappedSplit
from raydistill.tasks.shards_split import ShardsSplit
from raydistill.tasks.splits import Split, TensorSplit, View
from raydistill.tasks.task import Task
from raydistill.training.loop import seed_generators


def pictures(folder: Path, draw: np.random.Generator) -> ImageFolder:
    for part in ("train/one", "train/two", "val/one", "val/two"):
        (folder / part).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(draw.integers(256, size=(9, 9, 3), dtype=np.uint8)).save(
                folder / part / f"{number}.png"
            )
    return ImageFolder(folder=folder, image_size=8, resize=8, workers=0, validation_fraction=0)


def splits(folder: Path) -> dict[str, Split]:
    """One of every class, of six samples or more."""
    draw, six = np.random.default_rng(0), torch.arange(6)
    pixels = torch.from_numpy(draw.integers(256, size=(8, 3, 4, 4), dtype=np.uint8))
    return {
        "tensors": TensorSplit(pixels[:6], six % 2, six),
        "frames": FrameSplit(
            torch.rand(9, 5), torch.tensor([0, 4, 9]), torch.tensor([-1, 0]), six, six % 2, six
        ),
        "shards": ShardsSplit(pixels, six + 2, six % 2, six),
        "mapped": MappedSplit(Task(name="mapped"), pixels.numpy(), six.numpy() + 2, six % 2, six),
        "pictures": pictures(folder, draw).load().train,
    }


@pytest.mark.parametrize("name", ["tensors", "frames", "shards", "mapped", "pictures"])
def test_batches_reach_a_device_without_a_wait(twin: Any, tmp_path: Path, name: str) -> None:
    split: Any = splits(tmp_path)[name]
    assert isinstance(split, (TensorSplit, FrameSplit, ShardsSplit, MappedSplit, FolderSplit))
    order, view = [torch.tensor([4, 0, 3]), torch.tensor([5])], View(1, 2)
    there = split.to("twin:0")
    before = len(twin.waits)
    batches = list(there.batches(order, view))
    once = name == "pictures"  # the workers are told the ids
    assert len(twin.waits) - before == once
    for batch, expected in zip(batches, split.batches(order, view), strict=True):
        assert batch.device.type == "twin"
        assert torch.equal(batch.cpu(), expected)


def test_what_cannot_be_pinned_as_it_lies_is_sent_all_the_same(twin: Any) -> None:
    weights: Tensor = torch.tensor([0.25, 0.75]).expand(3, -1)
    with pytest.raises(RuntimeError, match="more than one element"):
        weights.pin_memory()
    assert torch.equal(to_device(weights, "twin:0").cpu(), weights)
    there = all_to_device([torch.arange(3), torch.arange(0), torch.arange(2)], "twin:0")
    assert [part.tolist() for part in there] == [[0, 1, 2], [], [0, 1]]


def test_the_twin_refuses_what_a_gpu_refuses(twin: Any) -> None:
    there = torch.arange(3, device="twin:0")
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.arange(3)
    assert not twin.waits
    there[there > 1], int(there[0]), torch.tensor([1.0], device="twin:0")
    assert len(twin.waits) == 3


@pytest.mark.parametrize(
    "own", [OwnInput(3, (12, 12), None, (0.4,) * 3, (0.2,) * 3), OwnInput(1, (4, 4), 6, (0.5,), (0.5,))]
)
def test_a_models_own_input_asks_the_host_nothing(twin: Any, own: OwnInput) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(own.channels * own.size[0] ** 2, 2))
    see_for_itself(model, own, (3, 8, 9), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    view = torch.rand(2, 3, 8, 9)
    expected = model(view)
    there, view = model.to("twin:0"), view.to("twin:0")
    twin.waits.clear()
    found = there(view)
    assert not twin.waits
    assert torch.equal(found.cpu(), expected)


class MakesTensors(nn.Module):
    """Makes tensors by itself, of its input's size and of none: both have to lie where the input does."""

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.flatten(1) + torch.arange(64, device=inputs.device) + torch.zeros(inputs.shape[0], 64)
        return rows[:, :3] + torch.tensor([1.0, 2.0, 3.0])


def test_a_program_runs_where_its_inputs_are(twin: Any, tmp_path: Path) -> None:
    """On another device than it was exported on."""
    inputs, batch = torch.randn(2, 1, 8, 8), torch.export.Dim("batch")
    program = torch.export.export(MakesTensors().eval(), (inputs,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "t.pt2")
    read = open_program(tmp_path / "t.pt2")
    expected = MakesTensors()(inputs)
    assert torch.equal(read(inputs), expected)
    assert torch.equal(read.to("twin:0")(inputs.to("twin:0")).cpu(), expected)


def test_only_where_a_device_is_chosen_is_one_named() -> None:
    """Elsewhere there is the CPU and all others: code that asks for CUDA runs in no test."""
    top = Path(raydistill.__file__).parent
    named = {path.relative_to(top).parts[0] for path in top.rglob("*.py") if "cuda" in path.read_text()}
    ours = [path for folder in (models, tasks) for path in Path(folder.__file__).parent.glob("*.py")]
    assert named == {"execution"}
    assert not [path for path in ours if "cuda" in path.read_text()]


def test_the_generator_of_a_device_is_seeded_with_that_of_the_cpu(twin: Any) -> None:
    seed_generators(5, torch.device("twin:0"))
    assert [
        torch.initial_seed(),
        *(g.initial_seed() for g in torch.get_device_module("twin").default_generators),
    ] == [5, 5]
