"""The user's code on the machine and in the process that is about to run it: is it that of the plan?"""

import sys
from collections.abc import Mapping
from typing import Any

from raydistill.errors import StageError
from raydistill.plan.config import Config
from raydistill.plan.fingerprint import differences
from raydistill.plan.model import ModelConfig, models_in

_met: dict[str, Mapping[str, Any]] = {}
"""The code of each model when this process first met it; Python imports a module once."""


def checked_models(
    config: Config, identity: Mapping[str, Any]
) -> tuple[tuple[ModelConfig, Mapping[str, Any]], ...]:
    """The user's models in a stage's config, with their identities.

    `StageError` when they are not what they were when the plan was read, here or in what this process has imported.
    """
    found = []
    for path, model in models_in(config):
        if model.is_users_own:
            here = model.identity()
            _check(model.name, _at(identity.get("config", {}), path), here)
            found.append((model, here))
    return tuple(found)


def _check(name: str, planned: Any, here: Mapping[str, Any]) -> None:
    """Modules alone: a file that options or code name may be one that the model itself writes while it is built."""
    code, expected = _modules(here), _modules(planned)
    if expected is not None and (changed := list(differences(expected, code))):
        raise StageError(
            f"model `{name}` is not here what it was when the plan was read: {', '.join(changed)}; run the plan again,"
            " with the same files on every machine"
        )
    before = _met.setdefault(name, code or {})
    if before != code and name.partition(":")[0] in sys.modules:
        raise StageError(
            f"model `{name}` was imported before it changed: {', '.join(differences(before, code))};"
            " start a new process"
        )
    _met[name] = code or {}


def _modules(identity: Any) -> Mapping[str, Any] | None:
    """The part of a model's identity that is the user's modules."""
    source = identity.get("source") if isinstance(identity, Mapping) else None
    return {"source": {"modules": source.get("modules", {})}} if isinstance(source, Mapping) else None


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values
