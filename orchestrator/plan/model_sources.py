"""What a model is made from besides its options: weights that the user names, and the user's own code.

Their content is part of a stage's identity, their place is not. Nothing is imported to find out.
"""

import hashlib
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from raydistill.models import MODELS
from raydistill.plan.model_config import ModelConfig


def missing_source(model: ModelConfig) -> str | None:
    """Why a model cannot be built here: its module or a file it names is not there. None when all is well."""
    if ":" in model.name:
        module = model.name.partition(":")[0]
        if module_file(module) is None:
            return (
                f"model `{model.name}`: no module `{module}` on the import path; run `distill` in the folder that"
                " holds it, or install its package"
            )
        return None
    for file in _named_files(model):
        if not Path(file).is_file():
            return f"model `{model.name}`: the file `{file}` does not exist"
    return None


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """A model's config as identity: files by the SHA-256 of their content, the user's module by that of its source."""
    values = model.model_dump(mode="json")
    if ":" in model.name:
        source = module_file(model.name.partition(":")[0])
        return {**values, "source": None if source is None else _sha256(source)}
    digests = {file: _sha256(Path(file)) for file in _named_files(model)}
    values["options"] = {key: digests.get(str(value), value) for key, value in values["options"].items()}
    return values


def module_file(name: str) -> Path | None:
    """The source file of a module, found on the import path without importing its packages."""
    path: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), path)
        if spec is None:
            return None
        if depth == len(parts):
            return Path(spec.origin) if spec.origin else None
        path = spec.submodule_search_locations
        if path is None:
            return None
    return None


def _named_files(model: ModelConfig) -> tuple[str, ...]:
    return MODELS[model.name].options.model_validate(model.options).files


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
