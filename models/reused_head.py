"""A network that ends in the classifier of another one (SimKD, Chen et al. 2022, arXiv 2203.14001).

Its own last maps go through a projector to the shape of the other's last maps, and from there on everything is the
other's. Bound together the parts are one plain chain.
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from raydistill.models.build import build_model
from raydistill.models.layers import LoneBatchNorm2d, Network, chain
from raydistill.models.options import ReusedHeadOptions

PROJECTOR = "projector"


def build_reused_head(
    options: ReusedHeadOptions, input_shape: Sequence[int], num_classes: int
) -> "ReusedHead":
    shape = tuple(input_shape)
    own, other = (
        build_model(
            str(model["name"]), {key: model[key] for key in model if key != "name"}, shape, num_classes
        )
        for model in (options.model, options.head)
    )
    return reuse_head(own, other, shape, options.factor)


def reuse_head(network: nn.Module, other: nn.Module, input_shape: Sequence[int], factor: int) -> "ReusedHead":
    """The network up to its last maps, a projector, and a copy of what the other has behind its own last maps.

    `ValueError` for a network without maps, and where the other's classifier does not take maps of this grid.
    """
    own_maps, own_shape = last_maps(network, input_shape)
    other_maps, other_shape = last_maps(other, input_shape)
    assert isinstance(network, Network)
    assert isinstance(other, Network)
    names, others = list(network._modules), list(other._modules)
    trunk = {name: network.get_submodule(name) for name in names[: names.index(own_maps) + 1]}
    head = {name: copy.deepcopy(other.get_submodule(name)) for name in others[others.index(other_maps) + 1 :]}
    paths = {name: path for name, path in network.feature_paths.items() if path.partition(".")[0] in trunk}
    paths |= {name: path for name, path in other.feature_paths.items() if path.partition(".")[0] in head}
    like = next(network.parameters())
    projector = build_projector(own_shape, other_shape, factor).to(like.device, like.dtype)
    made = ReusedHead({**trunk, PROJECTOR: projector, **head}, paths | {PROJECTOR: PROJECTOR})
    made.reused = tuple(head)
    grid = tuple(min(pair) for pair in zip(own_shape[1:], other_shape[1:], strict=True))
    try:
        with torch.no_grad():
            chain(**head).eval()(torch.zeros(1, other_shape[0], *grid, device=like.device, dtype=like.dtype))
    except RuntimeError:
        raise ValueError(
            f"its last maps are {own_shape[1]}x{own_shape[2]}, and the classifier of the other takes maps of"
            f" {other_shape[1]}x{other_shape[2]} alone; use a network whose maps are as large"
        ) from None
    return made.train()


@torch.no_grad()
def last_maps(network: nn.Module, input_shape: Sequence[int]) -> tuple[str, tuple[int, int, int]]:
    """The last part of a chain that gives maps, and their shape for a sample; `ValueError` where none does."""
    if not isinstance(network, Network):
        raise ValueError(
            f"a {type(network).__name__} is no chain of named parts, between whose maps and classifier there is a"
            " border; use a network such as `resnet20`, `cnn` or `vgg8`"
        )
    like, mode = next(network.parameters()), network.training
    values = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    found = None
    network.eval()
    for name, part in network.named_children():
        values = part(values)
        if values.dim() == 4:
            found = name, (values.shape[1], values.shape[2], values.shape[3])
    network.train(mode)
    if found is None:
        raise ValueError("none of its parts gives maps, behind which a classifier could be another's")
    return found


def build_projector(own: Sequence[int], other: Sequence[int], factor: int) -> nn.Sequential:
    """From maps of the shape `own` to those of the shape `other`, pooled to its grid where that is smaller.

    A bottleneck whose width is that of the other divided by `factor`: 1x1, 3x3, 1x1, each with batch norm and ReLU.
    """
    narrow = max(1, other[0] // factor)
    grid = tuple(min(pair) for pair in zip(own[1:], other[1:], strict=True))
    parts: dict[str, nn.Module] = {}
    if grid != tuple(own[1:]):
        parts["pool"] = nn.AdaptiveAvgPool2d((grid[0], grid[1]))
    steps = ((own[0], narrow, 1), (narrow, narrow, 3), (narrow, other[0], 1))
    for place, (given, made, kernel) in enumerate(steps, start=1):
        parts[f"conv{place}"] = nn.Conv2d(given, made, kernel, padding=kernel // 2, bias=False)
        parts |= {f"norm{place}": LoneBatchNorm2d(made), f"relu{place}": nn.ReLU()}
    return chain(**parts)


class ReusedHead(Network):
    """Logits (B, C). The feature `projector` is what stands for the other's last maps; `embedding` is the other's.
    `reused` are the parts that are the other's."""

    reused: tuple[str, ...] = ()
    is_held = False

    def hold_reused(self) -> Self:
        """From now on these parts are not trained, and act as in eval mode."""
        self.is_held = True
        for name in self.reused:
            self.get_submodule(name).requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.reused if self.is_held else ():
            self.get_submodule(name).eval()
        return self
