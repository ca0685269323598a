"""Batch normalisation over workers against torch's own, in a group of one; `stages/test_data_parallel.py` has two."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from torch import nn

from raydistill.training.batch_norm import GlobalBatchNorm


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


LAYERS = [
    lambda: nn.BatchNorm1d(3),
    lambda: nn.BatchNorm2d(3, momentum=None),
    lambda: nn.BatchNorm2d(3, affine=False, eps=1e-2),
    lambda: nn.BatchNorm2d(3, track_running_stats=False),
]


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("build", LAYERS)
def test_it_computes_what_torch_does(build: type[nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (8, 3) if isinstance(build(), nn.BatchNorm1d) else (8, 3, 4, 5)
    results = []
    for world in (1, 2):
        layer, gradients = build(), []
        with GlobalBatchNorm().spread_over_workers(nn.Sequential(layer), world):
            for step in range(3):
                inputs = (5 + 2 * torch.randn(shape, generator=generator.manual_seed(step))).requires_grad_()
                layer(inputs).pow(3).sum().backward()
                gradients.append(inputs.grad)
        results.append((*gradients, *(p.grad for p in layer.parameters()), *layer.state_dict().values()))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("group_of_one")
def test_afterwards_nothing_is_left_of_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    keys, inputs = list(model.state_dict()), torch.rand(4, 1, 2, 2)
    seen: list[torch.Tensor] = []
    model[1].register_forward_hook(lambda module, arguments, output: seen.append(output))
    with GlobalBatchNorm().spread_over_workers(model, 2):
        assert list(model.state_dict()) == keys
        inside = model(inputs)
        assert "forward" in vars(model[1])
    assert "forward" not in vars(model[1])
    torch.testing.assert_close(model(inputs), inside)
    assert len(seen) == 2


@pytest.mark.usefixtures("group_of_one")
def test_in_eval_mode_it_uses_the_running_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    with GlobalBatchNorm().spread_over_workers(model, 2):
        torch.testing.assert_close(model(torch.ones(1, 3)), torch.full((1, 3), 1 / (1 + 1e-5) ** 0.5))


@pytest.mark.usefixtures("group_of_one")
def test_half_precision_is_summed_in_float32_and_given_back() -> None:
    inputs = (300 + torch.randn(64, 3)).bfloat16()
    with GlobalBatchNorm().spread_over_workers(model := nn.Sequential(nn.BatchNorm1d(3)), 2):
        found = model(inputs)
    assert found.dtype == torch.bfloat16
    expected = nn.BatchNorm1d(3)(inputs.float())
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_with_one_worker_torch_does_it() -> None:
    with GlobalBatchNorm().spread_over_workers(layer := nn.BatchNorm1d(3), 1):
        assert "forward" not in vars(layer)
