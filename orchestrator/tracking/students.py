"""Students as logged models: exported by another process, uploaded, and the best one registered if the plan says so."""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from raydistill.errors import StoreError
from raydistill.runs.files import read_json
from raydistill.runs.view import WITH_RESULT, RunView, StageView
from raydistill.tracking import store
from raydistill.tracking.later import start_module
from raydistill.tracking.session import GivenUp, Session
from raydistill.tracking.settings import read_settings
from raydistill.tracking.state import ChildState

EXPORT_SECONDS = 60.0
SECONDS_PER_MODEL = 60.0
EXPORTED = "exported"
FILES = ("model.safetensors", "model.json")

log = logging.getLogger(__name__)


def push_students(session: Session[RunView]) -> None:
    """Log every student that has a run below this one, once; register the best of all if the plan run is done."""
    log_models(session, _shown_here(session))
    if name := _name_to_register(session):
        _register_best(session, name)


def has_students_left(session: Session[RunView]) -> bool:
    """Whether `push_students` still has something to do."""
    stages = session.state.stages
    is_logged = all(stages[node.name].is_model_done for node in _shown_here(session))
    return not is_logged or _name_to_register(session) is not None


def _shown_here(session: Session[RunView]) -> list[StageView]:
    """Those that were trained now, and cached ones that the store did not know."""
    sent, students = session.state.stages, session.run.in_role("student")
    done = [node for node in students if node.status in WITH_RESULT]
    return [node for node in done if node.status == "done" or node.name in sent]


def _name_to_register(session: Session[RunView]) -> str | None:
    """The name under which the best student is still to be registered."""
    run, settings = session.run, read_settings(session.run.folder)
    is_wanted = run.status == "done" and run.best("student") is not None and session.state.registered is None
    return settings.register_student_as if is_wanted and settings != "none" else None


def log_models(session: Session[RunView], nodes: Sequence[StageView]) -> None:
    """Log the models of these nodes, where that is still to be done; a student's weights if it cannot be exported."""
    stages = session.state.stages
    todo = [node for node in nodes if not stages.setdefault(node.name, ChildState()).is_model_done]
    if not todo:
        return
    session.client  # noqa: B018 - nobody is waiting any more: then do not even start
    with tempfile.TemporaryDirectory(prefix="raydistill-") as name:
        made = {node.name: exported_model(session.run.folder, node.name) for node in todo}
        made = {node: target for node, target in made.items() if _report(target).exists()}
        left = {node.name: Path(name) / node.name for node in todo if node.name not in made}
        folders = {left[node.name]: node.folder.path for node in todo if node.name in left}
        errors = export(folders, session.give_up) if folders else {}
        for node in todo:
            target = (made | left)[node.name]
            error = errors[target] if target in errors else _export_error(target)
            if error is None:
                _log_model(session, node, target)
            else:
                _log_files(session, node, error)
            stages[node.name].is_model_done = True
            session.save()
    shutil.rmtree(session.run.folder / EXPORTED, ignore_errors=True)


def export(folders: Mapping[Path, Path], give_up: threading.Event) -> dict[Path, str | None]:
    """Export {target: stage folder} in another process; returns what went wrong with each target, None if nothing.

    Raises `GivenUp` when nobody waits any longer: the models are exported another time.
    """
    requests = [{"stage": str(folder), "to": str(target)} for target, folder in folders.items()]
    process = start_module("raydistill.tracking.logged_model", requests)
    try:
        deadline = time.monotonic() + EXPORT_SECONDS + SECONDS_PER_MODEL * len(folders)
        while process.poll() is None and time.monotonic() < deadline:
            if give_up.wait(0.05):
                raise GivenUp("the models are exported another time")
        ended = "took too long" if process.poll() is None else f"ended with code {process.returncode}"
    finally:
        process.kill()
        process.wait()
    return {
        target: _export_error(target) if _report(target).exists() else f"the exporting process {ended}"
        for target in folders
    }


def exported_model(folder: Path, name: str) -> Path:
    """Where in the folder of a plan run the process that trained a student leaves it as an MLflow model."""
    return folder / EXPORTED / name


def _report(target: Path) -> Path:
    """Says how an export went; it is written last."""
    return target.with_name(f"{target.name}.json")


def _export_error(target: Path) -> str | None:
    try:
        error: str | None = read_json(_report(target))["error"]
    except (StoreError, KeyError, TypeError):
        return "the exporting process left a damaged report"
    return error


def _log_model(session: Session[RunView], node: StageView, folder: Path) -> None:
    """Make the logged model, upload it, tie it to the run and to its judgement."""
    from mlflow.entities import LoggedModelOutput, Metric

    client, state = session.client, session.state.stages[node.name]
    run_id = state.run_id or session.state.run_id
    if state.model is None:
        state.model = _find_or_create(session, node, str(run_id))
        session.save()
    client.log_model_artifacts(state.model, str(folder))
    outputs = client.get_run(run_id).outputs
    known = [output.model_id for output in outputs.model_outputs] if outputs else []
    if state.model not in known:
        client.log_outputs(run_id, [LoggedModelOutput(state.model, 0)])
    if state.run_id is not None:
        # The run has these very points already, and drops them; the model gets them.
        history = {key: client.get_metric_history(run_id, store.key_of(key)) for key in node.entry.metrics}
        points = [max(points, key=lambda point: point.step) for points in history.values() if points]
        metrics = [
            Metric(point.key, point.value, point.timestamp, point.step, model_id=state.model)
            for point in points
        ]
        client.log_batch(run_id, metrics=metrics)
    client.finalize_logged_model(state.model, "READY")


def _find_or_create(session: Session[RunView], node: StageView, run_id: str) -> str:
    client, experiment = session.client, session.state.experiment_id
    found = client.search_logged_models(
        [experiment], f"source_run_id = '{run_id}' AND tags.fingerprint = '{node.fingerprint}'"
    )
    if found:
        return str(found[0].model_id)
    tags = {"fingerprint": node.fingerprint, "stage": node.name, "plan": session.run.plan}
    created = client.create_logged_model(
        experiment, name=node.name.replace(".", "-"), source_run_id=run_id, tags=tags
    )
    return str(created.model_id)


def _log_files(session: Session[RunView], node: StageView, error: str) -> None:
    log.warning("tracking: `%s` is not logged as a model, its weights are: %s", node.name, error)
    run_id = session.state.stages[node.name].run_id or session.state.run_id
    for name in FILES:
        if (node.folder.path / name).exists():
            session.client.log_artifact(run_id, str(node.folder.path / name), f"model/{node.name}")


def _register_best(session: Session[RunView], name: str) -> None:
    """Register the student with the best validation accuracy, unless this very student is registered already."""
    from mlflow.exceptions import MlflowException

    best = session.run.best("student")
    assert best is not None
    try:
        session.state.registered = _register(session, best, name) or "no model could be logged"
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        log.warning("tracking: `%s` is not registered: %s", name, store.reason(error))
        session.state.registered = "refused"
    session.save()


def _register(session: Session[RunView], node: StageView, name: str) -> str | None:
    from mlflow.exceptions import MlflowException

    client = session.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.get("fingerprint") == node.fingerprint:
            return f"{name}/{known.version}"
    model = _model_of(session, node)
    if model is None:
        return None
    version = client.create_model_version(
        name,
        # Its address in the artifact store: `models:/<id>` would be looked up in the global tracking store.
        source=client.get_logged_model(model).artifact_location,
        run_id=session.state.stages.get(node.name, ChildState()).run_id or session.state.run_id,
        tags={"fingerprint": node.fingerprint, "stage": node.name, "plan": session.run.plan},
        model_id=model,
        await_creation_for=0,
    )
    return f"{name}/{version.version}"


def _model_of(session: Session[RunView], node: StageView) -> str | None:
    """The logged model of a student; one that another run trained is logged here if the store has none."""
    if run_id := session.state.cached.get(node.name):
        outputs = session.client.get_run(run_id).outputs
        if outputs and outputs.model_outputs:
            return str(outputs.model_outputs[0].model_id)
    log_models(session, [node])
    return session.state.stages[node.name].model
