"""What a part of a plan is made from besides its options: files that these name, and the user's own code.

Their content is part of a stage's identity, their place is not. Nothing is imported to find out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raydistill.plan.address import is_ours
from raydistill.plan.config import Config
from raydistill.plan.source_code import SourceCode, read_source
from raydistill.tasks.digests import digest_file
from raydistill.tasks.task import Task

OWN_CODE = "own code"
"""Where an identity has the user's code: a key that no option can have."""


def unreadable_file(options: Any) -> str | None:
    """Which file that options name cannot be read, and why."""
    for text in _texts(options):
        try:
            by_content(text)
        except (OSError, ValueError) as error:
            return f"the file `{text}` cannot be read: {error}"
    return None


def code_of(modules: Iterable[str]) -> SourceCode | None:
    """The code behind these modules together; None when there is none."""
    found = [source for name in modules if (source := read_source(name)) is not None]
    if not found:
        return None
    known = {name: digest for source in found for name, digest in source.modules.items()}
    files = {name: digest for source in found for name, digest in source.files.items()}
    return SourceCode(known, files, tuple(sorted({text for source in found for text in source.unseen})))


def source_identity(modules: Iterable[str]) -> dict[str, Any]:
    """The code behind these modules as JSON values; empty when there is none."""
    source = code_of(modules)
    if source is None:
        return {}
    return {"modules": dict(source.modules), **({"files": dict(source.files)} if source.files else {})}


def modules_of_task(task: Task) -> tuple[str, ...]:
    """The module of a task of the user's; none for one of ours."""
    module = type(task).__module__
    return () if is_ours(module) else (module,)


def task_identity(task: Task) -> dict[str, Any]:
    """A task's identity, with the code of the user's."""
    modules = modules_of_task(task)
    return {**task.identity(), **({OWN_CODE: source_identity(modules)} if modules else {})}


def unseen_sources(parts: Iterable[Config]) -> list[str]:
    """What these parts of a plan may depend on that no identity sees, a phrase each."""
    found: set[str] = set()
    for part in parts:
        if part.own_modules and (code := code_of(part.own_modules)) is not None:
            found |= set(code.unseen)
        # A model may keep its own files there: what it writes must not make it another one.
        found |= {
            f"the folder `{text}`, which an option names"
            for text in _texts(part.free_options)
            if _is_folder(text)
        }
    return sorted(found)


def by_content(value: Any) -> Any:
    """Options with the digest in the place of every text that names a file."""
    if isinstance(value, str):
        return digest_file(Path(value).expanduser()) if _is_file(value) else value
    if isinstance(value, Mapping):
        return {key: by_content(item) for key, item in value.items()}
    if isinstance(value, list):
        return [by_content(item) for item in value]
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
