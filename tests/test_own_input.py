"""What a model makes of the common view is what torchvision's transforms make of the same pixels."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from raydistill.models.own_input import OwnInput, see_for_itself
from raydistill.tasks.normalisation import Normalisation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOUR = Normalisation(
    torch.tensor([0.3, 0.6, 0.4]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1)
)
GREY = Normalisation(torch.tensor([0.13]).view(1, 1, 1), torch.tensor([0.31]).view(1, 1, 1))


class Shown(nn.Module):
    """Returns what it is given."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def shown(own: OwnInput, pixels: Tensor, normalisation: Normalisation) -> Tensor:
    """What a model is given of pixels (B, C, H, W) in [0, 1] that others see normalised."""
    model = see_for_itself(Shown(), own, tuple(pixels.shape[1:]), normalisation.mean, normalisation.std)
    seen: Tensor = model(normalisation(pixels))
    return seen


def pixels(channels: int, height: int, width: int) -> Tensor:
    return torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(56, 56), (13, 13), (32, 40), (24, 24)])
def test_size_and_normalisation_are_those_of_torchvision(size: Any, interpolation: Any) -> None:
    view = pixels(3, 24, 30)
    oracle = v2.Compose(
        [v2.Resize(size, InterpolationMode(interpolation), antialias=True), v2.Normalize(MEAN, STD)]
    )
    seen = shown(OwnInput(3, size, None, MEAN, STD, interpolation), view, COLOUR)
    torch.testing.assert_close(seen, oracle(view), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(24, 31), (31, 24), (40, 40), (19, 64)])
@pytest.mark.parametrize(("size", "resize"), [(20, 33), (24, 24), (21, 28)])
def test_the_centre_is_that_of_torchvision(size: int, resize: int, height: int, width: int) -> None:
    view = pixels(3, height, width)
    oracle = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size), v2.Normalize(MEAN, STD)])
    seen = shown(OwnInput(3, (size, size), resize, MEAN, STD), view, COLOUR)
    torch.testing.assert_close(seen, oracle(view), rtol=1e-4, atol=2e-5)


def test_grey_is_repeated_and_colour_mixed_as_torchvision_does() -> None:
    grey, colour = pixels(1, 9, 9), pixels(3, 9, 9)
    repeated = v2.Compose([v2.Grayscale(3), v2.Normalize(MEAN, STD)])(grey)
    torch.testing.assert_close(
        shown(OwnInput(3, (9, 9), None, MEAN, STD), grey, GREY), repeated, rtol=1e-4, atol=1e-5
    )
    mixed = v2.Compose([v2.Grayscale(1), v2.Normalize((0.5,), (0.25,))])(colour)
    seen = shown(OwnInput(1, (9, 9), None, (0.5,), (0.25,)), colour, COLOUR)
    # torchvision's weight of red is 0.2989, and the three so add up to 0.9999.
    torch.testing.assert_close(seen, mixed, rtol=0, atol=1e-3)


def test_without_numbers_of_its_own_the_tasks_hold_for_turned_channels_too() -> None:
    grey = pixels(1, 5, 5)
    assert torch.equal(shown(OwnInput(3, (5, 5)), grey, GREY), GREY(grey).expand(-1, 3, -1, -1))
    grey_pixels = torch.full((1, 3, 2, 2), 0.5)
    weights = torch.tensor([0.299, 0.587, 0.114])
    expected = (0.5 - weights @ COLOUR.mean.flatten()) / (weights @ COLOUR.std.flatten())
    torch.testing.assert_close(
        shown(OwnInput(1, (2, 2)), grey_pixels, COLOUR), expected.expand(1, 1, 2, 2), rtol=1e-5, atol=1e-6
    )


def test_what_changes_nothing_is_not_there() -> None:
    model = see_for_itself(Shown(), OwnInput(3, (7, 7)), (3, 7, 7), COLOUR.mean, COLOUR.std)
    assert not model._forward_pre_hooks
    view = COLOUR(pixels(3, 7, 7))
    assert model(view) is view


def test_a_mean_for_every_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="one per channel"):
        see_for_itself(
            Shown(), OwnInput(1, (4, 4), None, (0.5,), (0.5,)), (1, 4, 4), torch.zeros(1, 4, 4), GREY.std
        )


@pytest.mark.parametrize(
    "own", [OwnInput(3, (12, 12), None, MEAN, STD), OwnInput(1, (4, 4), 6, (0.5,), (0.5,))]
)
def test_it_exports_moves_with_its_model_and_stays_out_of_its_weights(own: OwnInput) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(own.channels * own.size[0] ** 2, 2)).eval()
    keys = list(model.state_dict())
    see_for_itself(model, own, (3, 8, 9), COLOUR.mean, COLOUR.std)
    assert list(model.state_dict()) == keys
    view = COLOUR(pixels(3, 8, 9))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (view,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(program(view[:1]), model(view[:1]))


def test_gradients_reach_the_view() -> None:
    view = COLOUR(pixels(3, 8, 8)).requires_grad_()
    model = see_for_itself(
        Shown(), OwnInput(1, (16, 16), None, (0.5,), (0.5,)), (3, 8, 8), COLOUR.mean, COLOUR.std
    )
    model(view).sum().backward()
    assert view.grad is not None
    # Every pixel counts fourfold, and red as luma does, times its deviation over the model's.
    torch.testing.assert_close(view.grad[:, 0].sum() / (3 * 64), torch.tensor(4 * 0.299 * 0.2 / 0.5))
