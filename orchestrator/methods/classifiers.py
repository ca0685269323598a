"""The linear classifier at a network's end, for methods that read its weights, and the maps that are pooled into it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.training.method import Features


def last_maps(features: Features, key: str) -> str:
    """The name of the maps that a network pools into its classifier; `ValueError` asks for the setting `key`."""
    last = features.stages_unless(key)[-1]
    return next((name for name in ("head", f"{last}_post") if features.has(name)), last)


def pooled_classifier(features: Features, name: str, method: str, key: str) -> nn.Linear:
    """The linear layer that makes logits of the means of the maps `name`; `ValueError` where they are made otherwise.

    A stage's dry run knows shapes alone: what is computed in between is looked at when its model is there.
    """
    linear = [(path, layer) for path, layer in features.model.named_modules() if isinstance(layer, nn.Linear)]
    (shape,) = features.shapes([name])
    if not linear or len(shape) != 3 or linear[-1][1].in_features != shape[0]:
        raise ValueError(_told(features, name, method, key))
    path, classifier = linear[-1]
    with torch.no_grad():
        maps, logits = features.probe([name, path])
        expected = classifier(means(maps))
    if not maps.is_meta and not torch.allclose(
        expected, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())
    ):
        raise ValueError(_told(features, name, method, key))
    return classifier


def means(maps: Tensor) -> Tensor:
    """(B, C) from maps (B, C, H, W), over their places."""
    return maps.flatten(2).mean(dim=2)


def class_maps(maps: Tensor, weight: Tensor, places: int) -> Tensor:
    """What the classifier's row of each class sees in each of `places` x `places` parts of maps (B, C, H, W), without
    its bias: (B, K, places²) from weights (K, C). Their mean is the logit less the bias."""
    coarse = F.adaptive_avg_pool2d(maps, places).flatten(2)
    return weight @ coarse


def check_grid(shape: Sequence[int], places: int, name: str) -> None:
    """`ValueError` for maps (C, H, W) of fewer rows or columns than `places`."""
    if min(shape[1:]) < places:
        raise ValueError(
            f"`{name}` has {shape[1]} x {shape[2]} places, fewer than `places: {places}` a side; lower it"
        )


def _told(features: Features, name: str, method: str, key: str) -> str:
    return (
        f"`{method}` needs maps whose means over places go into one linear layer that gives the logits; `{name}` of"
        f" {type(features.model).__name__} is none; name others as `{key}`, or take another method"
    )
