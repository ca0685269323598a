"""Models that lie in MLflow and that a plan begins from: fetched before the plan is ordered, as files below the root.

A plan names `models:/name/3`, `models:/name@alias` or `runs:/id/model`. Where that leads is asked anew each time, and
the file is kept by its content: a plan's identity is what was found, never the address. Nothing of what MLflow would
load is loaded: a program of `torch.export`, or safetensors, is taken out of the model's folder and read as if the user
had named it.
"""

import json
import logging
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import PlanError
from raydistill.masking import mask
from raydistill.models.weight_files import CONTRACT, is_registered, normalises_inside
from raydistill.plan.load import override_plan, source_of
from raydistill.plan.model import ModelConfig, models_in
from raydistill.plan.schema import Plan
from raydistill.plan.written import MAX_STORED, yaml_values
from raydistill.runs.fetched_files import keep_fetched
from raydistill.runs.files import make_folder
from raydistill.tracking.server import problem_of
from raydistill.tracking.store import import_mlflow, is_missing, open_client, reason, resolve_uri

PROGRAM, WEIGHTS, DESCRIPTION = "data/model.pt2", "model.safetensors", "MLmodel"
VERSION = re.compile(r"models:/(?P<name>[^/@]+)(/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))")
LOGGED = re.compile(r"models:/(?P<id>m-[0-9a-f]{32})")
OF_RUN = re.compile(r"runs:/(?P<run>[^/]+)/(?P<path>.+)")
MOST_BYTES = 1_000_000  # of a description

log = logging.getLogger(__name__)


def with_fetched_models(plan: Plan, root: Path, tracking_uri: str | None = None) -> Plan:
    """The plan with files in the place of the models in MLflow that it names. `PlanError` names the place of one that
    cannot be had, and why. A plan without any is what it was, and MLflow is not imported."""
    named = list(_named(plan))
    if not named:
        return plan
    make_folder(root)
    try:
        registry = _Registry.at(resolve_uri(root, tracking_uri), root)
    except _Refused as problem:
        raise named[0].error(plan, str(problem)) from None
    changes: dict[str, Any] = {}
    for one in named:
        try:
            changes |= one.with_file(plan, _fetched(one, registry, plan, root))
        except _Refused as problem:
            raise one.error(plan, str(problem)) from None
    return override_plan(plan, changes)


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """Why a model is not taken, with the way out."""


@dataclass(frozen=True)
class _Named:
    """A model of a plan, at a place of a stage, whose weights lie in MLflow."""

    stage: str
    path: tuple[str | int, ...]
    model: ModelConfig

    @property
    def address(self) -> str:
        return str(self.model.weights)

    def place(self, plan: Plan) -> tuple[str | int, ...]:
        """Where the plan's file says `weights`: beside the model or in it."""
        written = source_of(plan).values["stages"][self.stage]
        path = ("weights",) if written.get("weights") is not None else (*self.path, "weights")
        return ("stages", self.stage, *path)

    def with_file(self, plan: Plan, file: Path) -> dict[str, Any]:
        """What changes in the plan's file when the weights lie in a file."""
        model = ("stages", self.stage, *self.path)
        changes = {} if self._has_model(plan) else {model: self.model.name}
        changes[self.place(plan)] = str(file)
        return {".".join(map(str, path)): value for path, value in changes.items()}

    def _has_model(self, plan: Plan) -> bool:
        return self.path[0] in source_of(plan).values["stages"][self.stage]

    def error(self, plan: Plan, problem: str) -> PlanError:
        return plan.error(self.place(plan), f"`{self.address}` {problem}")


def _named(plan: Plan) -> Iterator[_Named]:
    for stage, config in plan.stages.items():
        for path, model in models_in(config):
            if is_registered(model.weights):
                yield _Named(stage, path, model)


@dataclass(frozen=True)
class _Registry:
    """A tracking store with its registry of models."""

    client: Any
    uri: str

    @classmethod
    def at(cls, uri: str, root: Path) -> "_Registry":
        if is_missing(uri):
            raise _Refused(
                f"is not there: there is no tracking store `{mask(uri)}`; name it, `--tracking-uri`"
            )
        if problem := problem_of(uri):
            problem = problem.partition(";")[0]
            raise _Refused(f"cannot be fetched: {problem}; start it, or name another, `--tracking-uri`")
        try:
            return cls(open_client(uri, root), uri)
        except Exception as error:  # of MLflow, of a database, of a network
            raise _Refused(f"cannot be fetched: {reason(error)}") from None

    def find(self, address: str) -> tuple[str, str]:
        """Where the files of a model are, and of a registered one its version."""
        if found := LOGGED.fullmatch(address):
            return self._logged(found["id"]), ""
        if found := VERSION.fullmatch(address):
            version = self._version(**found.groupdict())
            where = self.client.get_model_version_download_uri(found["name"], version)
            return self._underlying(where), f", version {version},"
        if found := OF_RUN.fullmatch(address):
            return self._of_run(found["run"], found["path"].strip("/")), ""
        raise _Refused(
            "is no address of a model: write `models:/name/3`, `models:/name@alias` or `runs:/id/model`"
        )

    def _version(self, name: str, version: str | None, alias: str | None) -> str:
        if alias is not None:
            return str(self.client.get_model_version_by_alias(name, alias).version)
        if version != "latest":
            return str(version)
        known = [int(one.version) for one in self.client.search_model_versions(f"name = '{name}'")]
        if not known:
            raise _Refused("is not there: the registry has no version of it")
        return str(max(known))

    def _underlying(self, where: str) -> str:
        """A version's source may itself be an address."""
        if found := LOGGED.fullmatch(where):
            return self._logged(found["id"])
        if found := OF_RUN.fullmatch(where):
            return self._of_run(found["run"], found["path"])
        return where

    def _logged(self, model_id: str) -> str:
        return str(self.client.get_logged_model(model_id).artifact_location)

    def _of_run(self, run_id: str, path: str) -> str:
        """A run has models by their names, and files by their paths."""
        run = self.client.get_run(run_id)
        outputs = run.outputs.model_outputs if run.outputs else []
        models = [self.client.get_logged_model(output.model_id) for output in outputs]
        logged = [model.artifact_location for model in models if model.name == path]
        return str(logged[-1]) if logged else f"{run.info.artifact_uri.rstrip('/')}/{path}"

    def files(self, where: str) -> Any:
        """MLflow's reader of the files there."""
        import_mlflow()
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(where, tracking_uri=self.uri)


def _fetched(named: _Named, registry: _Registry, plan: Plan, root: Path) -> Path:
    """The file of a model that is read, below the root."""
    wanted = PROGRAM if named.model.is_exported else WEIGHTS
    try:
        where, called = registry.find(named.address)
        files = registry.files(where)
        held = [one.path for folder in (None, "data") for one in files.list_artifacts(folder)]
        if wanted not in held:
            raise _Refused(_why_not(named, held))
        with tempfile.TemporaryDirectory(prefix="raydistill-") as scratch:
            file = Path(files.download_artifacts(wanted, dst_path=scratch))
            if wanted == PROGRAM and DESCRIPTION in held:
                told = _contract(Path(files.download_artifacts(DESCRIPTION, dst_path=scratch)))
                _check_classes(named, plan, told)
                _tell_program(file, told)
            kept = keep_fetched(root, file)
    except _Refused:
        raise
    except Exception as error:  # of MLflow, of whatever holds its artifacts, of a network
        raise _Refused(f"cannot be fetched: {reason(error)}") from None
    log.warning("note: `%s`%s is fetched as `%s`", named.address, called, kept)
    return kept


def _why_not(named: _Named, held: list[str]) -> str:
    if not held:
        return "is not there: nothing lies at its address"
    if PROGRAM in held:
        return f"is a program, not the weights of a `{named.model.name}`; take it as it is: `model: exported`"
    if WEIGHTS in held:
        return "is weights, not a program; name the network that they belong to as `model`"
    return (
        f"holds neither a program (`{PROGRAM}`) nor `{WEIGHTS}`, and what else MLflow loads may run code; where you"
        ' trust it, load it and save the tensors alone: `torch.save(model.state_dict(), "weights.pth")`'
    )


def _contract(description: Path) -> Mapping[str, Any]:
    """What a model of ours says of its inputs and outputs; nothing where it is another's, or cannot be read."""
    text = description.read_bytes()[: MOST_BYTES + 1]
    try:
        told = yaml_values(text.decode(), description.name, MAX_STORED)["metadata"]
    except (PlanError, ValueError, KeyError, TypeError):
        return {}
    return told if isinstance(told, dict) else {}


def _check_classes(named: _Named, plan: Plan, contract: Mapping[str, Any]) -> None:
    """A student of other classes, or of the same in another order, would teach the wrong ones without a word."""
    outputs = contract.get("outputs")
    theirs = outputs.get("class_names") if isinstance(outputs, dict) else None
    ours = list(plan.task.class_names)
    if theirs is None or named.model.classes is not None or theirs == ours:
        return
    place = next((at for at, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), None)
    differ = (
        f"`{theirs[place]}` is its class {place}, and `{ours[place]}` the task's"
        if place is not None
        else f"it has {len(theirs)} classes, and the task {len(ours)}"
    )
    raise _Refused(f"has other classes than the task: {differ}; say which are meant by the model's `classes`")


def _tell_program(program: Path, contract: Mapping[str, Any]) -> None:
    """Write into a program of ours what `distill export` does: that it normalises by itself, and gives probabilities.

    MLflow keeps that beside it. The bytes depend on both alone: an archive's times are left out.
    """
    told = json.dumps(contract, sort_keys=True)
    if not normalises_inside(told) or not zipfile.is_zipfile(program):
        return
    with zipfile.ZipFile(program, "a") as archive:
        top = archive.namelist()[0].partition("/")[0]
        if f"{top}/{CONTRACT}" not in archive.namelist():
            archive.writestr(zipfile.ZipInfo(f"{top}/{CONTRACT}"), told)
