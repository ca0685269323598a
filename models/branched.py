"""A network whose last stage and head stand several times on a shared trunk, and a gate that mixes their answers.

The architecture of ONE (Lan, Zhu, Gong 2018, arXiv 1806.04606): everything before the last stage is the trunk. Each
branch is the rest of the network with weights of its own; trunk and one branch are the plain network again.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raydistill.models.build import build_model
from raydistill.models.layers import LoneBatchNorm1d, Network, average_pool, chain
from raydistill.models.options import BranchedOptions


def build_branched(
    options: BranchedOptions, input_shape: Sequence[int], num_classes: int
) -> "BranchedNetwork":
    shape = tuple(input_shape)
    return branch_out(
        [
            build_model(options.model_name, options.model_options, shape, num_classes)
            for _ in range(options.branches)
        ],
        shape,
    )


def branch_out(networks: Sequence[nn.Module], input_shape: Sequence[int]) -> "BranchedNetwork":
    """The first network's trunk under the last stage and head of every network, which are all of one architecture."""
    first = networks[0]
    if not isinstance(first, Network):
        raise ValueError(
            f"a {type(first).__name__} is no chain of named stages, whose last one could branch; use a network"
            " such as `resnet20`, `cnn` or `vgg8`"
        )
    names = [name for name, _ in first.named_children()]
    stages = [name for name in names if re.fullmatch(r"stage[0-9]+", name)]
    start = names.index(stages[-1]) if stages else 0
    if not any(True for name in names[:start] for _ in first.get_submodule(name).parameters()):
        raise ValueError(
            f"a network of {len(stages)} stages has no trunk below its last one to share; use one of more stages"
        )
    trunk = _parts(first, names[:start])
    branches = [_parts(network, names[start:]) for network in networks]
    return BranchedNetwork(trunk, branches, _width(trunk, input_shape), first.feature_paths)


def _parts(network: nn.Module, names: Sequence[str]) -> nn.Sequential:
    return chain(**{name: network.get_submodule(name) for name in names})


def _width(trunk: nn.Module, input_shape: Sequence[int]) -> int:
    """Channels of what the trunk gives."""
    like = next(trunk.parameters())
    trunk.eval()
    with torch.no_grad():
        width = trunk(torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)).shape[1]
    trunk.train()
    return int(width)


class BranchedNetwork(nn.Module):
    """Logits (B, C): the branches' logits, summed with the weights that the gate gives to each sample.

    Features: `branch0`, `branch1`, … are the branches' logits, `gate` (B, branches) those weights; the trunk's
    features have the names of the plain network.
    """

    def __init__(
        self,
        trunk: nn.Sequential,
        branches: Sequence[nn.Sequential],
        width: int,
        plain_paths: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.gate = chain(
            **dict(average_pool().named_children()),
            linear=nn.Linear(width, len(branches)),
            norm=LoneBatchNorm1d(len(branches)),
            relu=nn.ReLU(),
            softmax=nn.Softmax(dim=1),
        )
        self.plain_paths = dict(plain_paths)
        shared = dict(trunk.named_children())
        self.feature_paths = {
            name: f"trunk.{path}" for name, path in plain_paths.items() if path.partition(".")[0] in shared
        }
        self.feature_paths |= {f"branch{index}": f"branches.{index}" for index in range(len(branches))}
        self.feature_paths["gate"] = "gate"

    def forward(self, inputs: Tensor) -> Tensor:
        shared = self.trunk(inputs if inputs.is_floating_point() else inputs.float())
        weights = self.gate(shared)
        logits = torch.stack([branch(shared) for branch in self.branches], dim=1)
        return (weights.unsqueeze(-1) * logits).sum(dim=1)

    def plain(self, index: int) -> Network:
        """The plain network: the trunk and one branch, whose weights it shares."""
        branch = dict(self.branches[index].named_children())
        return Network({**dict(self.trunk.named_children()), **branch}, self.plain_paths)
