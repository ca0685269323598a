"""Inputs found from activations: against the closed form of a linear network and a slow loss."""

import pytest
import torch
from torch import nn

from raydistill.training.reconstruction import reconstruct, reconstruction_loss, smoothed, thinned


@pytest.mark.parametrize("by_size", [True, False])
def test_the_loss_and_its_gradient_are_those_of_a_loop(by_size: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"wide": (3, 7), "narrow": (3, 2)}
    wanted = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    found = {
        name: torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    loss = reconstruction_loss(wanted, found, by_size=by_size)
    loss.backward()
    expected = 0.0
    for name, (count, units) in shapes.items():
        scale = 1 / (count * units * (units if by_size else 1))
        for row in range(count):
            for unit in range(units):
                record, own = float(wanted[name][row, unit]), float(found[name].detach()[row, unit])
                difference = max(own, 0) - max(record, 0)
                expected += scale * difference**2
                slope = 2 * scale * difference if own > 0 else 0.0
                assert float(found[name].grad[row, unit]) == pytest.approx(slope, abs=1e-15)  # type: ignore[index]
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_negative_activations_are_not_matched() -> None:
    wanted = {"logits": torch.tensor([[-3.0, 2.0]])}
    assert reconstruction_loss(wanted, {"logits": torch.tensor([[-9.0, 2.0]])}, by_size=False) == 0


def test_a_linear_network_is_inverted() -> None:
    """Where all activations are positive the loss is that of least squares, with one solution."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=draw)
    wanted = torch.rand(6, 4, generator=draw) + 1
    solution = wanted @ torch.linalg.pinv(weight).T
    found = reconstruct(
        lambda inputs: {"logits": inputs @ weight.T},
        solution + 0.1 * torch.randn(6, 4, generator=draw),
        {"logits": wanted},
        steps=1000,
        learning_rate=0.01,
    )
    assert reconstruction_loss({"logits": wanted}, {"logits": found @ weight.T}, by_size=False) < 1e-6
    torch.testing.assert_close(found, solution, atol=1e-3, rtol=0)


def test_no_steps_leave_the_start_and_the_start_is_never_written_to() -> None:
    start = torch.rand(2, 3)
    before = start.clone()
    assert torch.equal(
        reconstruct(lambda x: {"y": x}, start, {"y": start + 1}, steps=0, learning_rate=1), start
    )
    reconstruct(lambda x: {"y": x}, start, {"y": start + 1}, steps=3, learning_rate=1)
    assert torch.equal(start, before)


def test_smoothing_is_the_mean_of_the_neighbours_that_are_there_within_0_and_1() -> None:
    image = torch.tensor([[[[4.0, 0, 0], [0, 0, 0], [0, 0, -9.0]]]])
    expected = torch.tensor([[[[1.0, 4 / 6, 0], [4 / 6, 0, 0], [0, 0, 0]]]])
    torch.testing.assert_close(smoothed(image), expected)
    found = reconstruct(
        lambda x: {"y": 0 * x.flatten(1)},
        image,
        {"y": image.flatten(1)},
        steps=1,
        learning_rate=1,
        smooth_every=1,
    )
    torch.testing.assert_close(found, expected)


def test_a_thinned_network_drops_the_same_units_in_every_pass_and_rescales_none() -> None:
    model = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.0)).eval()
    ones = torch.ones(5, 2000)
    with thinned(model, torch.Generator().manual_seed(0)) as layers:
        first, second = model(ones), model(ones)
    assert layers == 1
    assert torch.equal(first, second)
    assert torch.equal(first, first[:1].expand(5, -1))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert first.mean().item() == pytest.approx(0.75, abs=0.03)
    with thinned(model, torch.Generator().manual_seed(1)):
        assert not torch.equal(model(ones), first)
    assert torch.equal(model(ones), ones)
