"""What a model is made from besides its options: files that these name, and the user's own code.

Their content is part of a stage's identity, their place is not. Nothing is imported to find out.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from raydistill.models import MODELS
from raydistill.plan.model_config import ModelConfig
from raydistill.plan.source_code import SourceCode, find_module, read_source
from raydistill.tasks.digests import digest_below, digest_file, digest_named

MOST_IN_A_FOLDER = 10_000


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
        return None
    for file in MODELS[model.name].options.model_validate(model.options).files:
        if not Path(file).is_file():
            return f"model `{model.name}`: the file `{file}` does not exist"
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
        found |= {f"the folder `{text}`, which is large" for text in _texts(model.options) if _is_large(text)}
    return sorted(found)


def _by_content(value: Any) -> Any:
    """Options with the digest in the place of every text that names something on the disk."""
    if isinstance(value, str):
        return _content_of(value) or value
    if isinstance(value, Mapping):
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_content(item) for item in value]
    return value


def _content_of(text: str) -> str | None:
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return digest_file(path)
        # A plain word is an option's value far more often than a folder that happens to lie here.
        return _content_of_folder(path) if "/" in text and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # no path at all, or none that can be read: it is a text
        return None


def _content_of_folder(folder: Path) -> str | None:
    """None for a folder of more than we read: all of somebody's disk, perhaps."""
    paths = list(islice(folder.rglob("*"), MOST_IN_A_FOLDER + 1))
    if len(paths) > MOST_IN_A_FOLDER:
        return None
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return digest_named(digest_below(folder, names))


def _is_large(text: str) -> bool:
    try:
        folder = Path(text).expanduser()
        return "/" in text and folder.is_dir() and _content_of(text) is None
    except (OSError, ValueError, RuntimeError):
        return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
