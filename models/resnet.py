"""Residual networks for small images (He et al., arXiv 1512.03385 §4.2), as the common benchmark builds them."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from raydistill.models.layers import (
    Network,
    ResidualBlock,
    average_pool,
    chain,
    convolution,
    drop_paths,
    image_shape,
    initialise_convolutions,
)
from raydistill.models.options import ResNetOptions


def build_resnet(options: ResNetOptions, input_shape: Sequence[int], num_classes: int) -> Network:
    channels, _, _ = image_shape(input_shape)
    width = options.stem_width or options.widths[0]
    parts: dict[str, nn.Module] = {
        "stem": chain(conv=convolution(channels, width), norm=nn.BatchNorm2d(width), relu=nn.ReLU())
    }
    features = {"stem_pre": "stem.norm", "stem": "stem"}
    stages = zip(options.widths, options.blocks_of_stages, strict=True)
    for index, (stage_width, blocks) in enumerate(stages, start=1):
        stage = f"stage{index}"
        parts[stage] = _stage(width, stage_width, blocks, stride=1 if index == 1 else 2, options=options)
        features |= {f"{stage}_pre": f"{stage}.{blocks - 1}.pre_activation", stage: stage}
        width = stage_width * options.expansion
    parts |= {"embedding": average_pool(), "classifier": nn.Linear(width, num_classes)}
    network = Network(parts, {**features, "embedding": "embedding"})
    initialise_convolutions(network)
    drop_paths(network, ResidualBlock, options.drop_path)
    return network


def _stage(channels_in: int, width: int, count: int, *, stride: int, options: ResNetOptions) -> nn.Sequential:
    branch: Callable[[int, int, int], nn.Module] = (
        _bottleneck_branch if options.block == "bottleneck" else _basic_branch
    )
    channels_out = width * options.expansion
    blocks = []
    for _ in range(count):
        shortcut = _shortcut(channels_in, channels_out, stride, options.shortcut)
        blocks.append(ResidualBlock(branch(channels_in, width, stride), shortcut))
        channels_in, stride = channels_out, 1
    return nn.Sequential(*blocks)


def _basic_branch(channels_in: int, width: int, stride: int) -> nn.Sequential:
    return chain(
        conv1=convolution(channels_in, width, stride=stride),
        norm1=nn.BatchNorm2d(width),
        relu1=nn.ReLU(),
        conv2=convolution(width, width),
        norm2=nn.BatchNorm2d(width),
    )


def _bottleneck_branch(channels_in: int, width: int, stride: int) -> nn.Sequential:
    return chain(
        conv1=convolution(channels_in, width, 1),
        norm1=nn.BatchNorm2d(width),
        relu1=nn.ReLU(),
        conv2=convolution(width, width, stride=stride),
        norm2=nn.BatchNorm2d(width),
        relu2=nn.ReLU(),
        conv3=convolution(width, 4 * width, 1),
        norm3=nn.BatchNorm2d(4 * width),
    )


def _shortcut(channels_in: int, channels_out: int, stride: int, kind: str) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    if kind == "padding":
        return PaddedShortcut(stride, channels_out - channels_in)
    return chain(
        conv=convolution(channels_in, channels_out, 1, stride=stride), norm=nn.BatchNorm2d(channels_out)
    )


class PaddedShortcut(nn.Module):
    """The paper's option A: every `stride`-th pixel, and channels of zeros appended; no parameters."""

    def __init__(self, stride: int, extra_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra_channels = extra_channels

    def forward(self, inputs: Tensor) -> Tensor:
        sampled = inputs[:, :, :: self.stride, :: self.stride]
        return functional.pad(sampled, (0, 0, 0, 0, 0, self.extra_channels))
