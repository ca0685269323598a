"""How a network was shown pictures when its published weights were trained, where its library tells."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from torch import nn

TOLD_IN = ("pretrained_cfg", "default_cfg")  # timm's networks carry one, and networks of others in its manner
INTERPOLATIONS = ("bilinear", "bicubic")


def published_input(model: nn.Module, architecture: str | None, weights: str | None) -> dict[str, Any]:
    """`size`, `mean`, `std`, `channels` and `interpolation` for a network: torchvision's of this `architecture`, with
    the file of `weights` that it was published with, or else the usual ones; or one that carries them.

    The centre that libraries cut out for their tests is left out: pictures in folders have gone through that by then.
    `ValueError` when nobody tells.
    """
    if architecture is not None:
        return _of_torchvision(architecture, weights)
    told = next((value for key in TOLD_IN if (value := getattr(model, key, None))), None)
    if told is None:
        raise ValueError(
            f"nothing tells how a {type(model).__name__} wants its input: it has no `pretrained_cfg`; write"
            " `input: {size: …, mean: …, std: …}`"
        )
    facts = told if isinstance(told, Mapping) else vars(told)
    channels, size, *_ = facts["input_size"]
    return _facts(size, facts["mean"], facts["std"], facts.get("interpolation"), channels)


def _of_torchvision(architecture: str, weights: str | None) -> dict[str, Any]:
    import torchvision

    kinds = torchvision.models.get_model_weights(architecture)
    name = None if weights is None else PurePath(weights).name
    chosen = next((kind for kind in kinds if PurePath(kind.url).name == name), kinds.DEFAULT)
    shown = chosen.transforms()
    return _facts(shown.crop_size[0], shown.mean, shown.std, shown.interpolation.value)


def _facts(size: int, mean: Any, std: Any, interpolation: Any, channels: int = 3) -> dict[str, Any]:
    return {
        "size": int(size),
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
        "interpolation": interpolation if interpolation in INTERPOLATIONS else "bilinear",
        "channels": "rgb" if channels == 3 else "grey",
    }
