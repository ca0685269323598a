"""Parts of a network that a training leaves as they are: a linear probe trains the classifier alone."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from raydistill.errors import StageError
from raydistill.models.names import suggestion


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Take gradients from the parameters whose names match, such as `features.*`; returns the normalisation layers of
    these names, whose running statistics stand still as long as they are in eval mode.

    `StageError` for a pattern that matches nothing, and where nothing is left to train.
    """
    # A parameter of two names is one tensor: it is frozen under either.
    named = dict(model.named_parameters(remove_duplicate=False))
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, _NormBase)}
    within = {name: [f"{name}.{own}" for own in layer.state_dict()] for name, layer in norms.items()}
    states = [*named, *(name for names in within.values() for name in names)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in states):
            known, listed = known_patterns(model)
            hint = suggestion(pattern, known, listed=listed)
            raise StageError(f"`freeze: [{pattern}]` matches no parameter of the model{hint}")
    for name, parameter in named.items():
        if _matches(name, patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise StageError(
            "`freeze` leaves nothing to train: it matches all parameters of the model; keep some out"
        )
    return [
        norms[name] for name, own in within.items() if own and all(_matches(each, patterns) for each in own)
    ]


def known_patterns(model: nn.Module) -> tuple[list[str], list[str]]:
    """Patterns of its parts and the names of its parameters, that somebody may have meant; and the few to list."""
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    parts = [f"{name}.*" for name, part in model.named_children() if any(True for _ in part.parameters())]
    return [*parts, *named], parts or named


def hold(norms: Sequence[nn.Module]) -> None:
    """After a model went into train mode: these layers normalise by what they know."""
    for norm in norms:
        norm.eval()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
