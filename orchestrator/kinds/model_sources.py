"""What a model is made from besides its options: files that these name, and the user's own code.

Their content is part of a stage's identity, their place is not. Nothing is imported to find out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raydistill.kinds.models import ModelConfig
from raydistill.models import MODELS
from raydistill.plan.source_code import SourceCode, find_module, read_source
from raydistill.tasks.digests import digest_file


def missing_source(model: ModelConfig) -> str | None:
    """Why a model cannot be built here: its module or a file it names is not there. None when all is well."""
    if is_users_own(model):
        module = model.name.partition(":")[0]
        found = find_module(module)
        if found is None or found.file is None:
            return (
                f"model `{model.name}`: no module `{module}` on the import path; run `distill` in the folder that"
                " holds it, or install its package"
            )
        return _unreadable_file(model)
    for file in MODELS[model.name].options.model_validate(model.options).files:
        if not Path(file).is_file():
            return f"model `{model.name}`: the file `{file}` does not exist"
    return _unreadable_file(model)


def _unreadable_file(model: ModelConfig) -> str | None:
    for text in _texts(model.options):
        try:
            _by_content(text)
        except (OSError, ValueError) as error:
            return f"model `{model.name}`: the file `{text}` cannot be read: {error}"
    return None


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """A model's config as identity: what options name by its content, the user's code by its syntax."""
    values = model.model_dump(mode="json")
    values["options"] = _by_content(values["options"])
    source = code_of(model)
    return values if source is None else {**values, "source": source_identity(source)}


def is_users_own(model: ModelConfig) -> bool:
    """Whether a function of the user's builds it."""
    return ":" in model.name


def code_of(model: ModelConfig) -> SourceCode | None:
    """The user's code behind a model; None for one of ours."""
    return read_source(model.name.partition(":")[0]) if is_users_own(model) else None


def source_identity(source: SourceCode) -> dict[str, Any]:
    """The code as JSON values."""
    return {"modules": dict(source.modules), **({"files": dict(source.files)} if source.files else {})}


def unseen_sources(models: Iterable[ModelConfig]) -> list[str]:
    """What these models may depend on that no identity sees, a phrase each."""
    found: set[str] = set()
    for model in models:
        code = code_of(model)
        found |= set(code.unseen) if code is not None else set()
        # A model may keep its own files there: what it writes must not make it another one.
        found |= {
            f"the folder `{text}`, which an option names"
            for text in _texts(model.options)
            if _is_folder(text)
        }
    return sorted(found)


def _by_content(value: Any) -> Any:
    """Options with the digest in the place of every text that names a file."""
    if isinstance(value, str):
        return digest_file(Path(value).expanduser()) if _is_file(value) else value
    if isinstance(value, Mapping):
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_content(item) for item in value]
    return value


def _is_file(text: str) -> bool:
    return _names(text, Path.is_file)


def _is_folder(text: str) -> bool:
    # A plain word is an option's value far more often than a folder that happens to lie here.
    return "/" in text and _names(text, Path.is_dir)


def _names(text: str, is_it: Callable[[Path], bool]) -> bool:
    try:
        return is_it(Path(text).expanduser())
    except (OSError, ValueError, RuntimeError):  # no path at all
        return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
