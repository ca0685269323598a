"""Architectures. Each maps inputs to logits and names the features inside. Importing this loads no torch.

Features have the same names in every family, so that a method can ask for them without knowing the network:

    stem, stage1, stage2, …   the outputs that the common CIFAR-100 benchmark (RepDistiller) takes as features
    hidden1, hidden2, …       fully connected hidden layers, after the ReLU
    head                      the last 1x1 convolution of MobileNetV2 and ShuffleNetV2
    X_pre                     what the ReLU that closes X reads; X is what it gives
    embedding                 the input of the last linear layer, one row per sample
    projector                 what stands for another network's last maps, where its classifier is reused
    branch0, branch1, …, gate of a branched network: each branch's logits, and the weights that mix them

Two families differ, and say so: in wide ResNets a stage is the raw sum, and the ReLU of its batch norm is `X_post`;
a stage of MobileNetV2 ends without a ReLU, so X and X_pre are the same tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from raydistill.models.names import suggestion
from raydistill.models.options import (
    AcousticOptions,
    BranchedOptions,
    CnnOptions,
    ExportedOptions,
    LeNetOptions,
    MlpOptions,
    MobileNetV2Options,
    Options,
    ResNetOptions,
    ReusedHeadOptions,
    ShuffleNetV2Options,
    TorchvisionOptions,
    VggOptions,
    WideResNetOptions,
)


@dataclass(frozen=True)
class Architecture:
    """A named network: the function that builds it, its options, and those of them that the name decides."""

    build: str
    options: type[Options]
    preset: Mapping[str, Any] = field(default_factory=dict)

    def read_options(self, chosen: Mapping[str, Any]) -> Options:
        """Check what the user chose; `ValueError` names a wrong option, or one that contradicts the name."""
        for key in chosen:
            if key not in self.options.model_fields:
                raise ValueError(f"unknown option `{key}`{suggestion(key, self.options.model_fields)}")
        try:
            options = self.options.model_validate({**self.preset, **chosen})
            fixed = self.options.model_validate({**chosen, **self.preset})
        except ValidationError as error:
            raise ValueError(_message(error)) from error
        for key in self.preset:
            if getattr(options, key) != getattr(fixed, key):
                raise ValueError(f"option `{key}` is {getattr(fixed, key)} by the model's name; leave it out")
        return options


def _message(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        problems.append(f"option `{place}`: {text}" if place else text)
    return "; ".join(problems)


def find_architecture(name: str) -> Architecture:
    """The architecture of that name; `ValueError` suggests the closest one."""
    if name not in MODELS:
        raise ValueError(f"unknown model `{name}`{suggestion(name, MODELS)}")
    return MODELS[name]


def _resnet(**preset: Any) -> Architecture:
    return Architecture("raydistill.models.resnet:build_resnet", ResNetOptions, preset)


def _wide_resnet(**preset: Any) -> Architecture:
    return Architecture("raydistill.models.wide_resnet:build_wide_resnet", WideResNetOptions, preset)


def _plain_cnn(
    widths: tuple[int, ...], convolutions: tuple[int, ...], hidden: tuple[int, ...] = ()
) -> Architecture:
    preset = {"widths": widths, "convolutions": convolutions, "batch_norm": True, "hidden": hidden}
    return Architecture("raydistill.models.cnn:build_cnn", CnnOptions, preset)


_WIDE_RESNETS = ((16, 1), (16, 2), (16, 4), (28, 2), (28, 4), (28, 10), (40, 1), (40, 2), (40, 4))

MODELS: dict[str, Architecture] = {
    "mlp": Architecture("raydistill.models.mlp:build_mlp", MlpOptions),
    "acoustic_dnn": Architecture("raydistill.models.mlp:build_acoustic_dnn", AcousticOptions),
    "cnn": Architecture("raydistill.models.cnn:build_cnn", CnnOptions),
    # TAKD (arXiv 1902.03393): the release's networks differ between CIFAR-10 and CIFAR-100.
    "plain_cnn_2": _plain_cnn((16, 16), (1, 1)),
    "plain_cnn_4": _plain_cnn((16, 32), (2, 2)),
    "plain_cnn_6": _plain_cnn((16, 32, 64), (2, 2, 2)),
    "plain_cnn_8": _plain_cnn((16, 32, 64, 128), (2, 2, 2, 2), (64,)),
    "plain_cnn_10": _plain_cnn((32, 64, 128, 256), (2, 2, 2, 4), (128,)),
    "plain_cnn_2_cifar100": _plain_cnn((32, 32), (1, 1)),
    "plain_cnn_4_cifar100": _plain_cnn((32, 64), (2, 2)),
    "plain_cnn_10_cifar100": _plain_cnn((32, 64, 128, 256), (2, 2, 2, 4), (512,)),
    "lenet5": Architecture("raydistill.models.lenet:build_lenet5", LeNetOptions),
    "lenet5_half": Architecture(
        "raydistill.models.lenet:build_lenet5", LeNetOptions, {"width_multiplier": 0.5}
    ),
    "resnet": _resnet(),
    **{f"resnet{depth}": _resnet(depth=depth) for depth in (8, 14, 20, 26, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _resnet(depth=depth, width_multiplier=4, stem_width=32) for depth in (8, 32)},
    # Of four stages, as ImageNet's, behind a stem for small images.
    "resnet18": _resnet(depth=18, width_multiplier=4, blocks=(2, 2, 2, 2)),
    "resnet34": _resnet(depth=34, width_multiplier=4, blocks=(3, 4, 6, 3)),
    "resnet50": _resnet(depth=50, width_multiplier=4, blocks=(3, 4, 6, 3), block="bottleneck"),
    "wide_resnet": _wide_resnet(),
    **{
        f"wrn_{depth}_{width}": _wide_resnet(depth=depth, width_multiplier=width)
        for depth, width in _WIDE_RESNETS
    },
    **{
        f"vgg{depth}": Architecture("raydistill.models.vgg:build_vgg", VggOptions, {"depth": depth})
        for depth in (8, 13)
    },
    "mobilenet_v2": Architecture("raydistill.models.mobilenet:build_mobilenet_v2", MobileNetV2Options),
    "mobilenet_v2_half": Architecture(
        "raydistill.models.mobilenet:build_mobilenet_v2", MobileNetV2Options, {"width_multiplier": 0.5}
    ),
    "shufflenet_v2": Architecture("raydistill.models.shufflenet:build_shufflenet_v2", ShuffleNetV2Options),
    "branched": Architecture("raydistill.models.branched:build_branched", BranchedOptions),
    "reused_head": Architecture("raydistill.models.reused_head:build_reused_head", ReusedHeadOptions),
    "exported": Architecture("raydistill.models.programs:build_exported", ExportedOptions),
    "torchvision": Architecture("raydistill.models.imagenet:build_torchvision", TorchvisionOptions),
}
