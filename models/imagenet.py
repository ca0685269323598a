"""torchvision's classification networks by name."""

from collections.abc import Sequence

import torchvision
from torch import nn

from raydistill.models.layers import image_shape
from raydistill.models.names import suggestion
from raydistill.models.options import TorchvisionOptions

# Their forward returns auxiliary logits beside the logits while training.
_WITH_AUXILIARY_CLASSIFIERS = {"googlenet", "inception_v3"}


def build_torchvision(options: TorchvisionOptions, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The network with random weights; ResNets name their stages, all name the `embedding`."""
    channels, _, _ = image_shape(input_shape)
    if channels != 3:
        raise ValueError(
            f"torchvision's networks read 3 channels, but the task's images have {channels}"
            + ("; write `input: {channels: rgb}` beside the architecture" if channels == 1 else "")
        )
    known = set(torchvision.models.list_models(module=torchvision.models)) - _WITH_AUXILIARY_CLASSIFIERS
    if options.architecture not in known:
        raise ValueError(
            f"torchvision has no classification network `{options.architecture}` that returns logits alone"
            + suggestion(options.architecture, sorted(known))
        )
    model: nn.Module = torchvision.models.get_model(
        options.architecture, weights=None, num_classes=num_classes
    )
    _make_out_of_place(model)
    model.feature_paths = _feature_paths(model)  # type: ignore[assignment]
    return model


def _make_out_of_place(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]


def _feature_paths(model: nn.Module) -> dict[str, str]:
    """A block's ReLU runs several times in one pass; its last input is the sum that closes the block."""
    features = {}
    if isinstance(model, torchvision.models.ResNet):
        features = {"stem_pre": "bn1", "stem": "relu"}
        for index, layer in enumerate((model.layer1, model.layer2, model.layer3, model.layer4), start=1):
            features[f"stage{index}_pre"] = f"layer{index}.{len(layer) - 1}.relu:input"
            features[f"stage{index}"] = f"layer{index}"
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {**features, "embedding": f"{linear[-1]}:input"} if linear else features
