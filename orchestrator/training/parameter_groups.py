"""Parameters that learn at rates of their own: by patterns of their names, and the slower the nearer to the inputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from raydistill.errors import StageError
from raydistill.kinds.training import ParameterGroupConfig
from raydistill.models.names import suggestion
from raydistill.training.freezing import known_patterns

SCALE = "lr_scale"
"""Of a parameter group: what its learning rate is multiplied by."""


@dataclass(frozen=True)
class Rule:
    """What a parameter is told: times the learning rate, and a weight decay unless it is the optimizer's."""

    lr_scale: float = 1.0
    weight_decay: float | None = None


def rules_of(
    model: nn.Module, groups: Sequence[ParameterGroupConfig], layer_decay: float | None
) -> dict[int, Rule]:
    """The rules of a model's parameters by their `id`, as far as they have one. `StageError` for a pattern that matches
    nothing that trains."""
    named = dict(model.named_parameters(remove_duplicate=False))
    scales = {} if layer_decay is None else _layer_scales(model, layer_decay)
    rules = {key: Rule(scale) for key, scale in scales.items()}
    taken: set[int] = set()
    for index, group in enumerate(groups):
        matched = [value for name, value in named.items() if fnmatchcase(name, group.match)]
        if not matched:
            known, listed = known_patterns(model)
            hint = suggestion(group.match, known, listed=listed)
            raise StageError(
                f"`parameter_groups.{index}.match: {group.match}` matches no parameter of the model{hint}"
            )
        if not any(value.requires_grad for value in matched):
            raise StageError(
                f"`parameter_groups.{index}.match: {group.match}` matches no parameter that is trained: they are all"
                " frozen; leave it out"
            )
        for key in {id(value) for value in matched} - taken:
            rules[key] = Rule(scales.get(key, 1.0) * group.lr_scale, group.weight_decay)
            taken.add(key)
    return rules


def layers_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer, from the inputs on: the model's parts in the order of its modules, as far as they
    have any. A chain or list (`Sequential`, `ModuleList`) counts as its entries in a model that names no features;
    what lies in no part belongs to the first, and a model of a single part is that part."""
    names_features = bool(getattr(model, "feature_paths", {}).keys() - {"embedding"})
    parts = [part for part in _parts(model, not names_features) if any(True for _ in part.parameters())]
    if len(parts) == 1 and any(True for _ in parts[0].children()):
        return layers_of(parts[0])
    own = list(model.parameters(recurse=False))
    layers = [list(part.parameters()) for part in parts] or [[]]
    return [own + layers[0], *layers[1:]]


def _parts(model: nn.Module, unfolds: bool) -> Iterator[nn.Module]:
    for part in model.children():
        if unfolds and isinstance(part, (nn.Sequential, nn.ModuleList)):
            yield from part.children()
        else:
            yield part


def _layer_scales(model: nn.Module, decay: float) -> dict[int, float]:
    """By the `id` of parameters; one of two layers goes with the first."""
    layers = layers_of(model)
    scales: dict[int, float] = {}
    for index, layer in enumerate(layers):
        for parameter in layer:
            scales.setdefault(id(parameter), decay ** (len(layers) - 1 - index))
    return scales


def divide(optimizer: Optimizer, rules: Mapping[int, Rule]) -> None:
    """Divide the groups of an optimizer that has not stepped, so that each parameter goes by its rule.

    Schedules multiply the rates that they find, so that the groups' keep their ratios.
    """
    divided: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[Rule, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(rules.get(id(parameter), Rule()), []).append(parameter)
        divided += [_by_rule({**group, "params": parameters}, rule) for rule, parameters in parts.items()]
    optimizer.param_groups[:] = divided


def _by_rule(group: dict[str, Any], rule: Rule) -> dict[str, Any]:
    if rule.lr_scale != 1:
        group |= {"lr": group["lr"] * rule.lr_scale, SCALE: rule.lr_scale}
    if rule.weight_decay is not None and "weight_decay" in group:
        group |= {"weight_decay": rule.weight_decay, "own_decay": True}
    return group
