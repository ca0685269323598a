"""Checks that the user's code, on this machine and in this process, is the code that the plan was made with."""

from collections.abc import Iterator, Mapping
from typing import Any

from raydistill.errors import StageError
from raydistill.plan.address import changed_since_met, difference
from raydistill.plan.config import Config, configs_in
from raydistill.plan.kind import Kind
from raydistill.plan.model import ModelConfig
from raydistill.plan.own_metrics import code_of_metric, metric_at, module_of
from raydistill.plan.schema import Plan
from raydistill.plan.sources import OWN_CODE, modules_of_task, source_identity
from raydistill.runs.record import OwnMetric
from raydistill.tasks.task import Task


def user_modules(plan: Plan) -> list[str]:
    """The modules of a plan's own models, methods, stages, ...: they must be importable wherever a stage runs."""
    own = {name for _, part in configs_in(plan) for name in part.own_modules}
    return sorted({*modules_of_task(plan.task), *map(module_of, plan.metrics), *own})


def checked_metrics(planned: Mapping[str, str]) -> tuple[OwnMetric, ...]:
    """The user's own metrics, by address the digest that their code had when the plan was read; `StageError` when it
    has another one here, or they cannot be used."""
    found = []
    for address, code in planned.items():
        try:
            metric = metric_at(address)
        except ValueError as error:
            raise StageError(str(error)) from error
        if code_of_metric(address) != code:
            raise StageError(
                f"metric `{address}` is not here what it was when the plan was read; run the plan again, with the same"
                " files on every machine"
            )
        found.append(OwnMetric.of(address, code, metric))
    return tuple(found)


def checked_code(
    config: Config, identity: Mapping[str, Any], task: Task
) -> tuple[tuple[ModelConfig, Mapping[str, Any]], ...]:
    """The user's models in a stage's config, with their identities.

    `StageError` when these, or what else is the user's own, are not what they were when the plan was read, here or in
    what this process has imported.
    """
    models = []
    for title, modules, planned in _own_parts(config, identity, task):
        _check(title, modules, planned)
    for _, part in configs_in(config):
        if isinstance(part, ModelConfig) and part.is_users_own:
            models.append((part, part.identity()))
    return tuple(models)


def _own_parts(
    config: Config, identity: Mapping[str, Any], task: Task
) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """What each is called, its modules, and the code that they had when the plan was read, if that is known."""
    if modules := modules_of_task(task):
        yield f"task `{task.name}`", modules, _at(identity.get("task"), (OWN_CODE,))
    for path, part in configs_in(config):
        if part.own_modules and isinstance(part, ModelConfig):
            yield f"model `{part.name}`", part.own_modules, _at(identity.get("config"), (*path, "source"))
        elif part.own_modules and isinstance(part, Kind):
            planned = _at(identity.get("config"), (*path, OWN_CODE))
            yield f"{part.chosen_by.noun} `{part.word}`", part.own_modules, planned
        elif part.own_modules:
            planned = _at(identity.get("config"), (*path, OWN_CODE))
            yield f"what `{'.'.join(map(str, path))}` names", part.own_modules, planned


def _check(title: str, modules: tuple[str, ...], planned: Any) -> None:
    """Modules alone: a file that options or code name may be one that the model itself writes while it is built."""
    here = source_identity(modules).get("modules", {})
    expected = planned.get("modules", {}) if isinstance(planned, Mapping) else None
    if expected is not None and (changed := difference(expected, here)):
        raise StageError(
            f"{title} is not here what it was when the plan was read: {changed}; run the plan again,"
            " with the same files on every machine"
        )
    for name in modules:
        if stale := changed_since_met(name):
            raise StageError(f"{title} was imported before it changed: {stale}; start a new process")


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values
