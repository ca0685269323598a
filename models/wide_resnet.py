"""Wide residual networks (Zagoruyko and Komodakis, arXiv 1605.07146): batch norm and ReLU before a convolution.

A stage ends in a sum that no ReLU closes. `stage1` is that sum; `stage1_pre` and `stage1_post` lie around the
first ReLU of the next stage, which is where OFD (arXiv 1904.01866) takes its features.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from raydistill.models.layers import (
    Network,
    average_pool,
    chain,
    convolution,
    drop_paths,
    image_shape,
    initialise_convolutions,
)
from raydistill.models.options import WideResNetOptions


def build_wide_resnet(options: WideResNetOptions, input_shape: Sequence[int], num_classes: int) -> Network:
    channels, _, _ = image_shape(input_shape)
    width = 16
    parts: dict[str, nn.Module] = {"stem": convolution(channels, width)}
    for index in (1, 2, 3):
        stage_width = 2 ** (index - 1) * 16 * options.width_multiplier
        parts[f"stage{index}"] = _stage(width, stage_width, stride=1 if index == 1 else 2, options=options)
        width = stage_width
    classifier = nn.Linear(width, num_classes)
    nn.init.zeros_(classifier.bias)
    parts |= {
        "norm": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
        "embedding": average_pool(),
        "classifier": classifier,
    }
    network = Network(parts, _feature_paths())
    initialise_convolutions(network)
    drop_paths(network, PreActivationBlock, options.drop_path)
    return network


def _feature_paths() -> dict[str, str]:
    features = {"stem": "stem"}
    for index in (1, 2):
        following = f"stage{index + 1}.0"
        features |= {
            f"stage{index}": f"stage{index}",
            f"stage{index}_pre": f"{following}.norm1",
            f"stage{index}_post": f"{following}.relu1",
        }
    return {
        **features,
        "stage3": "stage3",
        "stage3_pre": "norm",
        "stage3_post": "relu",
        "embedding": "embedding",
    }


def _stage(channels_in: int, width: int, *, stride: int, options: WideResNetOptions) -> nn.Sequential:
    blocks = []
    for _ in range((options.depth - 4) // 6):
        blocks.append(PreActivationBlock(channels_in, width, stride, options.dropout))
        channels_in, stride = width, 1
    return nn.Sequential(*blocks)


class PreActivationBlock(nn.Module):
    """branch(relu(norm(x))) + x; where channels change, x becomes a 1x1 convolution of relu(norm(x))."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.branch = chain(
            conv1=convolution(channels_in, channels_out, stride=stride),
            norm2=nn.BatchNorm2d(channels_out),
            relu2=nn.ReLU(),
            dropout=nn.Dropout(dropout),
            conv2=convolution(channels_out, channels_out),
        )
        changes = channels_in != channels_out
        self.shortcut = convolution(channels_in, channels_out, 1, stride=stride) if changes else None

    def forward(self, inputs: Tensor) -> Tensor:
        activated = self.relu1(self.norm1(inputs))
        passed = inputs if self.shortcut is None else self.shortcut(activated)
        return self.branch(activated) + passed
