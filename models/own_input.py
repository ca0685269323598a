"""How a model sees the picture that others see too: resized, in its own channels, normalised for itself.

All models are given one and the same view, normalised by the task. A hook on the model itself makes its own input of
it, so that names of weights and paths of features stay what they are, and so that whoever runs, exports or stores the
model has it with it. Undoing the task's normalisation, turning colours and normalising anew are one multiplication and
one addition for each channel.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as the reader of pictures turns colour grey


@dataclass(frozen=True)
class OwnInput:
    """What a model takes: `channels` of `size` (height, width), and per channel pixels less `mean` over `std`.

    The view is scaled to `size`; with `resize`, its shorter side to `resize`, and the centre of `size` is cut out.
    Without `mean` and `std` it is normalised by the task's, turned as the channels are.
    """

    channels: int
    size: tuple[int, int]
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one input."""
        return (self.channels, *self.size)

    def scaled_to(self, view: tuple[int, int]) -> tuple[int, int]:
        """The size (height, width) to which a view of this size is scaled, before the centre is cut out."""
        if self.resize is None:
            return self.size
        height, width = view
        shorter = min(view)  # rounded down, as torchvision's `Resize` does
        return int(self.resize * height / shorter), int(self.resize * width / shorter)


def see_for_itself(
    model: nn.Module, own: OwnInput, view_shape: tuple[int, ...], mean: Tensor, std: Tensor
) -> nn.Module:
    """The same model, which takes views of shape (channels, height, width) that were normalised by `mean` and `std`.

    `ValueError` when those differ from pixel to pixel: an input of another size has no such pixels.
    """
    channels, *size = view_shape
    turns = own.mean is not None or own.channels != channels
    if turns:
        scale, offset = _affine(own, channels, mean, std)
        # Not among the stored weights, but with the model on its device.
        model.register_buffer("own_input_scale", scale, persistent=False)
        model.register_buffer("own_input_offset", offset, persistent=False)
    if turns or tuple(size) != own.size or own.resize is not None:
        model.register_forward_pre_hook(
            partial(_as_own, own=own, narrows=turns and own.channels < channels, turns=turns)
        )
    return model


def see_raw(model: nn.Module, mean: Tensor, std: Tensor) -> nn.Module:
    """The same model, which takes inputs that were normalised by `mean` and `std` and is shown them as they were."""
    model.register_buffer("raw_scale", std.clone(), persistent=False)
    model.register_buffer("raw_offset", mean.clone(), persistent=False)
    model.register_forward_pre_hook(_as_raw)
    return model


def _as_raw(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    view, *others = inputs
    if view.is_floating_point():  # integers stand for things, and were not normalised
        view = view * model.raw_scale + model.raw_offset
    return (view, *others)


def _as_own(model: nn.Module, inputs: tuple[Any, ...], *, own: OwnInput, turns: bool, narrows: bool) -> Any:
    view: Tensor
    view, *others = inputs
    view = _resized(view, own)
    if turns:
        view = _turned(view, model.own_input_scale, model.own_input_offset, narrows=narrows)  # type: ignore[arg-type]
    return (view, *others)


def _turned(view: Tensor, scale: Tensor, offset: Tensor, *, narrows: bool) -> Tensor:
    if narrows:
        return (view * scale).sum(dim=1, keepdim=True) + offset
    return torch.addcmul(offset, view, scale)


def _resized(view: Tensor, own: OwnInput) -> Tensor:
    """A view (B, C, H, W) in the model's size."""
    before = (view.shape[-2], view.shape[-1])
    height, width = scaled = own.scaled_to(before)
    if scaled != before:
        view = F.interpolate(view, size=scaled, mode=own.interpolation, align_corners=False, antialias=True)
    # Of an odd rest the half is rounded as torchvision's `CenterCrop` does, to an even number.
    top, left = round((height - own.size[0]) / 2), round((width - own.size[1]) / 2)
    return view if scaled == own.size else view[..., top : top + own.size[0], left : left + own.size[1]]


def _affine(own: OwnInput, channels: int, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and summands (C, 1, 1): what is multiplied, and summed over the channels where colour turns grey."""
    mean, std = _per_channel(mean, channels), _per_channel(std, channels)
    factor, seen_mean, seen_std = _column((1.0,)), mean, std
    if own.channels < channels:
        factor = _column(LUMA)
        seen_mean, seen_std = ((factor * values).sum(dim=0, keepdim=True) for values in (mean, std))
    own_mean = seen_mean if own.mean is None else _column(own.mean)
    own_std = seen_std if own.std is None else _column(own.std)
    scale = (factor * std / own_std).expand(max(channels, own.channels), 1, 1)
    offset = ((seen_mean - own_mean) / own_std).expand(own.channels, 1, 1)
    return scale.float().contiguous(), offset.float().contiguous()


def _per_channel(values: Tensor, channels: int) -> Tensor:
    """A task's mean or deviation as (channels, 1, 1) float64."""
    if values.dim() not in (0, 3) or values.shape[1:].numel() != 1:
        raise ValueError(
            "the task has a mean for every pixel, and `input` needs one per channel to undo its normalisation"
        )
    return values.double().expand(channels, 1, 1)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
