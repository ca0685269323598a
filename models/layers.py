"""Parts that several families share.

Every ReLU is out of place: an in-place one overwrites the pre-activation feature that it reads.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Network(nn.Sequential):
    """A chain of named parts that ends in logits; `feature_paths` says whose output a feature is.

    Integer inputs are taken as numbers.
    """

    def __init__(self, parts: Mapping[str, nn.Module], feature_paths: Mapping[str, str]) -> None:
        super().__init__(OrderedDict(parts))
        self.feature_paths = dict(feature_paths)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = super().forward(inputs if inputs.is_floating_point() else inputs.float())
        return outputs

    def behind(self, feature: str) -> nn.Sequential:
        """The parts that lead from a feature to the logits; `ValueError` unless the feature is what a part returns."""
        names, path = list(self._modules), self.feature_paths.get(feature, feature)
        if path not in names:
            raise ValueError(
                f"`{feature}` lies inside a part of the network; name the output of one of {names}"
            )
        return nn.Sequential(*list(self)[names.index(path) + 1 :])


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)); the sum passes through `pre_activation`, where it can be tapped."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.pre_activation = nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.relu(self.pre_activation(self.branch(inputs) + self.shortcut(inputs)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): while it trains a residual branch is 0 for a part `rate`
    of the samples, drawn one by one, and 1 / (1 - rate) times itself for the others, which keeps its mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        is_kept = inputs.new_empty(len(inputs), *[1] * (inputs.dim() - 1)).bernoulli_(1 - self.rate)
        return inputs * (is_kept / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def drop_paths(network: nn.Module, kind: type[nn.Module], rate: float) -> None:
    """Let the branches of a network's blocks end in `DropPath`: rates rise with depth in a line, to that of the last
    block (arXiv 1603.09382, eq. 4). Nothing at 0."""
    blocks = [module for module in network.modules() if isinstance(module, kind)]
    for number, block in enumerate(blocks if rate else [], start=1):
        block.get_submodule("branch").add_module("drop_path", DropPath(rate * number / len(blocks)))


class LoneBatchNorm(_BatchNorm):
    """Batch normalisation that accepts a single value per channel, which torch's refuses: it counts as two equal ones.

    An epoch's last batch may hold a single sample; its normalised value is 0, whatever it is.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and inputs.numel() == inputs.shape[1]:
            return super().forward(inputs.expand(2, *inputs.shape[1:]))[:1]
        return super().forward(inputs)


class LoneBatchNorm1d(LoneBatchNorm, nn.BatchNorm1d):
    """Of vectors (B, C)."""


class LoneBatchNorm2d(LoneBatchNorm, nn.BatchNorm2d):
    """Of maps (B, C, H, W)."""


def chain(**parts: nn.Module) -> nn.Sequential:
    """The parts in the order given, each under its own name."""
    return nn.Sequential(OrderedDict(parts))


def convolution(
    channels_in: int, channels_out: int, kernel_size: int = 3, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the image's size, up to its stride; no bias, since batch norm follows."""
    padding = kernel_size // 2
    return nn.Conv2d(
        channels_in, channels_out, kernel_size, stride=stride, padding=padding, groups=groups, bias=False
    )


def convolution_stage(
    channels_in: int, widths: Sequence[int], *, batch_norm: bool
) -> tuple[nn.Sequential, str]:
    """3x3 convolutions with bias, each followed by ReLU, and the name of the layer that the last ReLU reads."""
    layers: dict[str, nn.Module] = {}
    last = ""
    for index, channels_out in enumerate(widths, start=1):
        last = f"conv{index}"
        layers[last] = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        if batch_norm:
            last = f"norm{index}"
            layers[last] = nn.BatchNorm2d(channels_out)
        layers[f"relu{index}"] = nn.ReLU()
        channels_in = channels_out
    return chain(**layers), last


def dense_layers(
    size_in: int, widths: Sequence[int], dropout: float
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Hidden layers `hidden1`, `hidden2`, … (linear, ReLU, dropout) and the paths of their features."""
    parts: dict[str, nn.Module] = {}
    features: dict[str, str] = {}
    for index, width in enumerate(widths, start=1):
        name = f"hidden{index}"
        parts[name] = chain(linear=nn.Linear(size_in, width), relu=nn.ReLU(), dropout=nn.Dropout(dropout))
        features |= {f"{name}_pre": f"{name}.linear", name: f"{name}.relu"}
        size_in = width
    return parts, features


def average_pool() -> nn.Sequential:
    """(B, C, H, W) to (B, C): the mean over the image."""
    return chain(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())


def image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width; `ValueError` when the task's inputs are not images."""
    if len(input_shape) != 3:
        raise ValueError(
            f"this model reads images (channels, height, width), but the task's inputs have the shape "
            f"{tuple(input_shape)}; use `mlp`, which flattens any input"
        )
    channels, height, width = input_shape
    return channels, height, width


def initialise_convolutions(model: nn.Module) -> None:
    """N(0, 2 / (k² · channels out)) and biases 0: arXiv 1502.01852, its backward form."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_classifier(classifier: nn.Linear) -> None:
    """N(0, 0.01²), biases 0, as VGG and MobileNetV2 start."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
