"""MobileNetV2 (arXiv 1801.04381) for 32x32 images, as in the common CIFAR-100 benchmark.

Against the paper: ReLU for ReLU6, one stride of 2 fewer, and the first block keeps its 1x1 expansion although
it expands by 1. For ImageNet use `{name: torchvision, architecture: mobilenet_v2}`.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from raydistill.models.layers import (
    Network,
    average_pool,
    chain,
    convolution,
    image_shape,
    initialise_classifier,
    initialise_convolutions,
)
from raydistill.models.options import MobileNetV2Options

_HEAD_WIDTH = 1280

# The paper's table 2 as (channels, blocks, stride), grouped into the stages whose ends the benchmark taps.
_STAGES = (
    ((16, 1, 1), (24, 2, 1)),
    ((32, 3, 2),),
    ((64, 4, 2), (96, 3, 1)),
    ((160, 3, 2), (320, 1, 1)),
)


def build_mobilenet_v2(options: MobileNetV2Options, input_shape: Sequence[int], num_classes: int) -> Network:
    """A stage ends in a linear bottleneck: no ReLU follows, so `stage1_pre` is `stage1` itself."""
    channels, _, _ = image_shape(input_shape)
    width = _scaled(32, options)
    parts: dict[str, nn.Module] = {"stem": _convolution_norm_relu(channels, width, 3, stride=2)}
    features = {"stem_pre": "stem.norm", "stem": "stem"}
    for index, rows in enumerate(_STAGES, start=1):
        parts[f"stage{index}"], width = _stage(width, rows, index == 1, options)
        features |= {f"stage{index}_pre": f"stage{index}", f"stage{index}": f"stage{index}"}
    head_width = max(_HEAD_WIDTH, int(_HEAD_WIDTH * options.width_multiplier))
    classifier = nn.Linear(head_width, num_classes)
    parts |= {
        "head": _convolution_norm_relu(width, head_width, 1),
        "embedding": average_pool(),
        "classifier": classifier,
    }
    network = Network(parts, {**features, "head_pre": "head.norm", "head": "head", "embedding": "embedding"})
    initialise_convolutions(network)
    initialise_classifier(classifier)
    return network


def _scaled(channels: int, options: MobileNetV2Options) -> int:
    return max(1, int(channels * options.width_multiplier))


def _convolution_norm_relu(
    channels_in: int, channels_out: int, kernel_size: int, *, stride: int = 1
) -> nn.Sequential:
    return chain(
        conv=convolution(channels_in, channels_out, kernel_size, stride=stride),
        norm=nn.BatchNorm2d(channels_out),
        relu=nn.ReLU(),
    )


def _stage(
    channels_in: int, rows: Sequence[tuple[int, int, int]], is_first: bool, options: MobileNetV2Options
) -> tuple[nn.Sequential, int]:
    blocks: list[nn.Module] = []
    for channels, count, stride in rows:
        for _ in range(count):
            expansion = 1 if is_first and not blocks else options.expansion
            channels_out = _scaled(channels, options)
            blocks.append(InvertedResidual(channels_in, channels_out, stride, expansion))
            channels_in, stride = channels_out, 1
    return nn.Sequential(*blocks), channels_in


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without activation; add the input if it fits."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.adds_input = stride == 1 and channels_in == channels_out
        self.branch = chain(
            expand=convolution(channels_in, hidden, 1),
            norm1=nn.BatchNorm2d(hidden),
            relu1=nn.ReLU(),
            filter=convolution(hidden, hidden, stride=stride, groups=hidden),
            norm2=nn.BatchNorm2d(hidden),
            relu2=nn.ReLU(),
            project=convolution(hidden, channels_out, 1),
            norm3=nn.BatchNorm2d(channels_out),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.branch(inputs) if self.adds_input else self.branch(inputs)
