"""What makes two stages the same: task, config, inputs and the version of the stage's code."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any

from raydistill.plan.config import Path, configs_in, stage_refs
from raydistill.plan.stage import StageConfig

DATA_CHANGED = "the data that is learned from changed"
LENGTH = 12  # hexadecimal digits: among 100,000 stages two collide with a chance of 2 in 100,000


def stage_identity(config: StageConfig, task: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """All that decides a stage's result, as JSON values. `inputs`: fingerprint of each stage that is read.

    What is not set (None) is no part of it, so that an option which is new leaves older results valid; nor is a
    `revision` of 1.
    """
    values = config.model_dump(mode="json", exclude=set(config.not_identity), exclude_none=True)
    values = config.identified(values)
    for path, part in configs_in(config):
        if path and path[0] not in config.not_identity:
            _replace(values, path, part.identified(_at(values, path)))
    for path, ref in stage_refs(config):
        _replace(values, path, {"input": inputs[ref]})
    return {"kind": config.safe_word(), "version": config.version, "task": dict(task), "config": values}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """A short digest of an identity, the same on every machine."""
    return digest(identity)[:LENGTH]


def digest(identity: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Readable differences of two identities: `config.epochs: 10 → 12`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), (*path, str(key)))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, (*path, str(index)))
    elif old != new:
        yield _difference(path, old, new)


def _difference(path: tuple[str, ...], old: Any, new: Any) -> str:
    """One difference; digests, which tell a person nothing, in words."""
    place = ".".join(path).removesuffix(".input")
    became = "is new" if old is None else "is gone" if new is None else "changed"
    if path[-3:-1] in (("source", "modules"), ("own code", "modules")):
        return f"module `{path[-1]}` {became}"
    if path[-3:-1] in (("source", "files"), ("own code", "files")):
        return f"file `{path[-1]}` {became}"
    if path == ("task", "content"):
        return DATA_CHANGED
    if path == ("task", "test"):
        return "the test split changed"
    if _is_digest(old) and _is_digest(new):
        return f"{place}: the file changed"
    return f"{place}: {_shown(old)} → {_shown(new)}"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _shown(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _at(values: Any, path: Path) -> Any:
    return reduce(getitem, path, values)


def _replace(values: Any, path: Path, value: Any) -> None:
    _at(values, path[:-1])[path[-1]] = value
