"""A plain network whose earlier stages have exits: small classifiers beside it, which train with it and are taken off.

The architecture of BYOT (Zhang et al. 2019, arXiv 1905.08094). An exit brings its stage's map to the grid of the last
stage and to the width of the embedding, so that both can be compared: a 1x1 convolution, one whose kernel and stride
are the ratio of the grids, and a 1x1 one, each with batch norm and ReLU; the mean over the grid; a linear layer.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raydistill.models.layers import LoneBatchNorm2d, Network, average_pool, chain
from raydistill.models.taps import Tapped


def add_exits(network: nn.Module, input_shape: Sequence[int]) -> "ExitNetwork":
    """The network with an exit behind every stage but the last; `ValueError` for one without such stages."""
    if not isinstance(network, Network):
        raise ValueError(
            f"a {type(network).__name__} is no chain of named stages, which could have exits; use a network such as"
            " `resnet20`, `cnn` or `vgg8`"
        )
    stages = [name for name, _ in network.named_children() if re.fullmatch(r"stage[0-9]+", name)]
    if len(stages) < 2:
        raise ValueError(
            f"a network of {len(stages)} stages has none before its last one, where an exit could be; use one of more"
        )
    shapes, width, num_classes = _shapes(network, input_shape)
    exits = {name: build_exit(shapes[name], shapes[stages[-1]], width, num_classes) for name in stages[:-1]}
    return ExitNetwork(network, exits).to(next(network.parameters()).device)


@torch.no_grad()
def _shapes(network: Network, input_shape: Sequence[int]) -> tuple[dict[str, torch.Size], int, int]:
    """What each part gives for a sample, the width of the embedding, and the number of classes."""
    like = next(network.parameters())
    values = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    network.eval()
    tapped = Tapped(network, ["embedding"])
    logits, features = tapped(values)
    tapped.remove_hooks()
    shapes = {}
    for name, part in network.named_children():
        values = part(values)
        shapes[name] = values.shape[1:]
    network.train()
    return shapes, features["embedding"].shape[1], logits.shape[1]


def build_exit(shape: Sequence[int], last: Sequence[int], width: int, num_classes: int) -> nn.Sequential:
    """From maps of `shape` to logits, by way of the grid of the maps `last` and an embedding of this `width`.

    Before that the maps have a quarter of that width, as in a bottleneck of a ResNet.
    """
    channels, narrow = shape[0], max(1, width // 4)
    ratio = (max(1, shape[1] // last[1]), max(1, shape[2] // last[2]))
    steps = ((channels, narrow, (1, 1)), (narrow, narrow, ratio), (narrow, width, (1, 1)))
    parts: dict[str, nn.Module] = {}
    for place, (given, made, kernel) in enumerate(steps, start=1):
        parts[f"conv{place}"] = nn.Conv2d(given, made, kernel, stride=kernel, bias=False)
        parts |= {f"norm{place}": LoneBatchNorm2d(made), f"relu{place}": nn.ReLU()}
    return chain(**parts, embedding=average_pool(), classifier=nn.Linear(width, num_classes))


class ExitNetwork(nn.Module):
    """Logits (B, C) of the plain `network`, which is the last exit.

    Features: `exit1`, `exit2`, … are the earlier exits' logits, `exit1_embedding`, … (B, D) what their classifiers
    read; the others have the names of the plain network.
    """

    def __init__(self, network: Network, exits: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.exits = nn.ModuleDict(exits)
        self.feature_paths = {name: f"network.{path}" for name, path in network.feature_paths.items()}
        for place, name in enumerate(exits, start=1):
            self.feature_paths |= {
                f"exit{place}": f"exits.{name}",
                f"exit{place}_embedding": f"exits.{name}.embedding",
            }

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs if inputs.is_floating_point() else inputs.float()
        for name, part in self.network.named_children():
            values = part(values)
            if name in self.exits:
                self.exits[name](values)  # which is tapped where somebody asks for it
        return values
