"""LeNet-5 in its modern form (ReLU, max-pooling): 61,706 parameters on one channel and ten classes."""

from collections.abc import Sequence

from torch import nn

from raydistill.models.layers import Network, chain, image_shape
from raydistill.models.options import LeNetOptions


def build_lenet5(options: LeNetOptions, input_shape: Sequence[int], num_classes: int) -> Network:
    channels, height, width = image_shape(input_shape)
    if (height, width) not in {(28, 28), (32, 32)}:
        raise ValueError(f"LeNet-5 reads images of 28x28 or 32x32, not {height}x{width}")
    first, second, third, fourth = (
        max(1, round(units * options.width_multiplier)) for units in (6, 16, 120, 84)
    )
    border = (32 - height) // 2
    parts = {
        "stage1": chain(conv=nn.Conv2d(channels, first, 5, padding=border), relu=nn.ReLU()),
        "pool1": nn.MaxPool2d(2),
        "stage2": chain(conv=nn.Conv2d(first, second, 5), relu=nn.ReLU()),
        "pool2": nn.MaxPool2d(2),
        "stage3": chain(conv=nn.Conv2d(second, third, 5), relu=nn.ReLU()),
        "flatten": nn.Flatten(),
        "hidden1": chain(linear=nn.Linear(third, fourth), relu=nn.ReLU()),
        "classifier": nn.Linear(fourth, num_classes),
    }
    features = {"stem": "stage1", "flat": "flatten"}
    features |= {"hidden1_pre": "hidden1.linear", "hidden1": "hidden1", "embedding": "hidden1"}
    for stage in ("stage1", "stage2", "stage3"):
        features |= {f"{stage}_pre": f"{stage}.conv", stage: stage}
    return Network(parts, features)
