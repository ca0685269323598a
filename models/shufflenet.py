"""ShuffleNetV2 (arXiv 1807.11164) for 32x32 images, as in the common CIFAR-100 benchmark: 1x1 stem, no pool.

The paper applies the closing ReLU to a branch before the shuffle. Here it comes after the shuffle, on all
channels: the half that passes through is non-negative already, so values and gradients are the same, and the
whole tensor before the ReLU can be tapped.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raydistill.models.layers import Network, average_pool, chain, convolution, image_shape
from raydistill.models.options import ShuffleNetV2Options

_WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_BLOCKS = (3, 7, 3)
_STEM_WIDTH = 24


def build_shufflenet_v2(
    options: ShuffleNetV2Options, input_shape: Sequence[int], num_classes: int
) -> Network:
    """PyTorch's own initialisation, as in the benchmark."""
    channels, _, _ = image_shape(input_shape)
    *stage_widths, head_width = _WIDTHS[options.width_multiplier]
    width = _STEM_WIDTH
    parts: dict[str, nn.Module] = {"stem": _convolution_norm_relu(channels, width)}
    features = {"stem_pre": "stem.norm", "stem": "stem"}
    for index, (stage_width, count) in enumerate(zip(stage_widths, _BLOCKS, strict=True), start=1):
        stage = f"stage{index}"
        parts[stage] = nn.Sequential(
            DownBlock(width, stage_width), *(ShuffleBlock(stage_width) for _ in range(count))
        )
        features |= {f"{stage}_pre": f"{stage}.{count}.pre_activation", stage: stage}
        width = stage_width
    parts |= {
        "head": _convolution_norm_relu(width, head_width),
        "embedding": average_pool(),
        "classifier": nn.Linear(head_width, num_classes),
    }
    return Network(parts, {**features, "head_pre": "head.norm", "head": "head", "embedding": "embedding"})


def _convolution_norm_relu(channels_in: int, channels_out: int) -> nn.Sequential:
    return chain(
        conv=convolution(channels_in, channels_out, 1), norm=nn.BatchNorm2d(channels_out), relu=nn.ReLU()
    )


def _branch(channels_in: int, width: int, stride: int) -> nn.Sequential:
    return chain(
        conv1=convolution(channels_in, width, 1),
        norm1=nn.BatchNorm2d(width),
        relu1=nn.ReLU(),
        filter=convolution(width, width, stride=stride, groups=width),
        norm2=nn.BatchNorm2d(width),
        conv2=convolution(width, width, 1),
        norm3=nn.BatchNorm2d(width),
    )


def shuffle_channels(left: Tensor, right: Tensor) -> Tensor:
    """Two tensors (B, C, H, W) to one (B, 2C, H, W) whose channels alternate: left 0, right 0, left 1, …"""
    return torch.stack((left, right), dim=2).flatten(1, 2)


class ShuffleBlock(nn.Module):
    """One half of the channels passes, the other goes through the branch; then the halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, stride=1)
        self.pre_activation = nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        passed, changed = inputs.chunk(2, dim=1)
        return self.relu(self.pre_activation(shuffle_channels(passed, self.branch(changed))))


class DownBlock(nn.Module):
    """Halves the image: both branches see all channels, with stride 2."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        width = channels_out // 2
        self.shortcut = chain(
            filter=convolution(channels_in, channels_in, stride=2, groups=channels_in),
            norm1=nn.BatchNorm2d(channels_in),
            conv=convolution(channels_in, width, 1),
            norm2=nn.BatchNorm2d(width),
        )
        self.branch = _branch(channels_in, width, stride=2)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.relu(shuffle_channels(self.shortcut(inputs), self.branch(inputs)))
