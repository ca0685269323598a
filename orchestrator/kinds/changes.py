"""Numbers of a training that have other values from some epoch on: which may, and what the training is like then.

A training that was cut after some epochs is a stage of its own, whose fingerprint follows from that of the whole one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self, TypeVar

from pydantic import ValidationError

from raydistill.errors import did_you_mean
from raydistill.kinds.training import ChangeConfig
from raydistill.plan import config_errors
from raydistill.plan.config import Config
from raydistill.plan.config_errors import Mistake
from raydistill.plan.fingerprint import fingerprint

MOST_BEGINNINGS = 1000  # epochs that are tried, 50 µs each


class Changing(Protocol):
    """As much of a training's config as its changes are about."""

    @property
    def changes(self) -> tuple[ChangeConfig, ...] | None: ...

    def changeable(self) -> dict[str, float]:
        """The numbers that may change while it trains, by their paths."""
        ...

    def replace(self, **changes: Any) -> Self: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...

    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...


Training = TypeVar("Training", bound=Changing)


def during(config: Training, epoch: int) -> Training:
    """The config as it is in an epoch, counted from 0."""
    for change in config.changes or ():
        if change.after <= epoch:
            config = _changed(config, change)
    return config


def phases(config: Training) -> list[Training]:
    """A stage's config as it is at first, and after each of its changes."""
    return [config, *(during(config, change.after) for change in config.changes or ())]


def mistakes_of_changes(config: Changing) -> Iterator[Mistake]:
    """What is wrong with a stage's changes, and where."""
    for index, change in enumerate(config.changes or ()):
        place = ("changes", index, "set")
        numbers = during(config, change.after - 1).changeable()
        for path, value in change.set.items():
            if path not in numbers:
                reason = f"`{path}` is no number that may change while a stage trains"
                yield Mistake((*place, path), reason + did_you_mean(path, numbers))
                return
            if path.endswith("weight") and (value == 0) != (numbers[path] == 0):
                yield Mistake((*place, path), _zero(numbers[path]))
                return
        yield from _mistakes_of_values(during(config, change.after), place, change)


def beginnings(identity: Mapping[str, Any], epochs: int) -> Iterator[str]:
    """The fingerprints of a training of so many epochs cut after fewer of them, the longest first."""
    config = {key: value for key, value in identity["config"].items() if key not in ("until", "changes")}
    changes = identity["config"].get("changes", [])
    for last in range(epochs - 1, max(epochs - 1 - MOST_BEGINNINGS, 0), -1):
        earlier = [change for change in changes if change["after"] < last]
        cut = {**config, "until": last, **({"changes": earlier} if earlier else {})}
        yield fingerprint({**identity, "config": cut})


def _zero(before: float) -> str:
    if before == 0:
        return "it is 0 until then, and what it weighs is left out from the start; begin with a small number"
    return "a weight of 0 would leave out what training reaches until then; write a small number"


def _mistakes_of_values(
    config: Changing, place: config_errors.Path, change: ChangeConfig
) -> Iterator[Mistake]:
    """The schema's own word on a changed config."""
    values = config.model_dump(mode="json")
    try:
        type(config).model_validate(values)
    except ValidationError as error:
        (path, message), *_ = config_errors.mistakes(error, values)
        written = ".".join(str(part) for part in path)
        yield Mistake((*place, written) if written in change.set else place, message)


def _changed(config: Training, change: ChangeConfig) -> Training:
    for path, number in change.set.items():
        config = _with(config, path.split("."), number)
    return config


def _with(value: Any, path: list[str], number: float) -> Any:
    """A config, or a tuple of configs, with another number at a path."""
    if not path:
        return number
    first, rest = path[0], path[1:]
    if isinstance(value, tuple):
        index = int(first)
        return (*value[:index], _with(value[index], rest, number), *value[index + 1 :])
    assert isinstance(value, Config)
    return value.replace(**{first: _with(getattr(value, first), rest, number)})
