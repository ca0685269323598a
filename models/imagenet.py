"""torchvision's classification networks by name, with weights from a file that the user has."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raydistill.models.layers import image_shape
from raydistill.models.names import suggestion
from raydistill.models.options import TorchvisionOptions

# Their forward returns auxiliary logits beside the logits while training.
_WITH_AUXILIARY_CLASSIFIERS = {"googlenet", "inception_v3"}


def build_torchvision(options: TorchvisionOptions, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The network, with weights if a file is named; ResNets name their stages, all name the `embedding`."""
    channels, _, _ = image_shape(input_shape)
    if channels != 3:
        raise ValueError(f"torchvision's networks read 3 channels, but the task's images have {channels}")
    known = set(torchvision.models.list_models(module=torchvision.models)) - _WITH_AUXILIARY_CLASSIFIERS
    if options.architecture not in known:
        raise ValueError(
            f"torchvision has no classification network `{options.architecture}` that returns logits alone"
            + suggestion(options.architecture, sorted(known))
        )
    model: nn.Module = torchvision.models.get_model(
        options.architecture, weights=None, num_classes=num_classes
    )
    if options.weights is not None:
        load_weights(model, Path(options.weights))
    _make_out_of_place(model)
    model.feature_paths = _feature_paths(model)  # type: ignore[assignment]
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict that fits exactly; nothing in the file is executed."""
    tensors = _read_tensors(path)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise ValueError(f"`{path}` has no tensor `{name}`; it is not a state dict of this model")
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"`{path}`: tensor `{name}` has the shape {tuple(tensors[name].shape)}, "
                f"the model needs {tuple(tensor.shape)}; is the number of classes another one?"
            )
    for name in tensors:
        if name not in expected:
            raise ValueError(f"`{path}` has a tensor `{name}` that this model does not know")
    model.load_state_dict(tensors)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights file `{path}` does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"`{path}` cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"`{path}` is not a state dict: it holds something other than named tensors")
    return tensors


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
