"""The MLflow run of one stage: params, tags, curves, final judgement.

A run is looked for by its tag before it is made, and a point is sent only if its step is above the highest one that
arrived. When nobody saw the last batch arrive, MLflow is asked what it has. So a push may end anywhere.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from raydistill.runs.context import ATTEMPT
from raydistill.runs.flat import flatten, with_names
from raydistill.runs.folder import LOG, METRICS
from raydistill.runs.view import RunView, StageView
from raydistill.tracking import store
from raydistill.tracking.curves import Position, fresh_points, read_lines
from raydistill.tracking.datasets import push_dataset
from raydistill.tracking.description import failure_tags, last_lines, lineage_tags, links_of
from raydistill.tracking.session import METRICS_PER_BATCH, Run, Session
from raydistill.tracking.state import CLOSED_AS, ChildState


def push_stage(session: Session[RunView], node: StageView) -> None:
    """Everything new of a stage that runs, or ran, in this plan run."""
    state = session.state.stages.setdefault(node.name, ChildState())
    if state.is_finished:
        return
    with session.passing_over_deleted(state):
        _open(session, node, state)
        _describe(session, node, state)
        _push_curves(session, node, state)
        if session.is_over or node.status != "running":
            _close(session, node, state)


def _open(session: Session[RunView], node: StageView, state: ChildState) -> None:
    if state.run_id is not None:
        return
    fingerprints = {other.name: other.fingerprint for other in session.run.stages.values()}
    tags = {
        "mlflow.parentRunId": str(session.state.run_id),
        "stage": node.name,
        "kind": node.kind,
        "role": node.role,
        "fingerprint": node.fingerprint,
    } | {store.key_of(f"reads.{name}"): fingerprints[name] for name in node.reads}
    key = f"{session.run.key}/{node.name}"
    state.run_id, state.is_in_doubt = session.find_or_create(key, node.name, tags, _started(node))
    session.save()


def _started(node: StageView) -> float:
    """When the stage began, as well as the files can tell: Unix time in seconds."""
    if record := node.record:
        return record.finished - record.seconds
    attempt = node.folder.path / ATTEMPT
    return attempt.stat().st_mtime if attempt.exists() else time.time()


def _describe(session: Session[RunView], node: StageView, state: ChildState) -> None:
    identity = node.identity
    if state.is_described or not identity:
        return
    names = {other.fingerprint: other.name for other in session.run.stages.values()}
    task = identity.get("task")
    task = task.get("name", "") if isinstance(task, dict) else ""
    config = with_names(node.config, names)
    session.log_params(state.run_id, {**flatten(config), "task": task})
    state.is_described = True
    session.save()


def _push_curves(session: Session[RunView], node: StageView, state: ChildState) -> None:
    before = Position(state.offset, state.tail)
    lines, position = read_lines(node.folder.path / METRICS, before)
    push_lines(session, state, lines)
    if position != before:
        state.offset, state.tail = position.offset, position.tail
        session.save()


def push_lines(session: Session[Run], state: ChildState, lines: Sequence[Mapping[str, Any]]) -> None:
    """Send the points of lines like those of a metrics.jsonl that are above what arrived."""
    if state.is_in_doubt:
        _ask(session, state, {key for line in lines for key in line} - {"step", "time"})
    points = list(fresh_points(lines, state.steps))
    for start in range(0, len(points), METRICS_PER_BATCH):
        batch = points[start : start + METRICS_PER_BATCH]
        state.is_in_doubt = True
        session.save()
        session.log_points(state.run_id, batch)
        state.steps.update({point.key: point.step for point in batch})
        state.is_in_doubt = False
        session.save()


def _ask(session: Session[Run], state: ChildState, keys: set[str]) -> None:
    """Learn from MLflow how far the sender came who was interrupted."""
    for key in keys:
        history = session.client.get_metric_history(state.run_id, store.key_of(key))
        if history:
            state.steps[key] = max(point.step for point in history)


def _close(session: Session[RunView], node: StageView, state: ChildState) -> None:
    record = node.record
    push_lines(session, state, last_lines(record, max(state.steps.values(), default=0)))
    push_dataset(session, node, state)
    session.log_tags(state.run_id, lineage_tags(node, session.run, links_of(session.state)))
    if error := node.error:
        session.log_tags(state.run_id, failure_tags(error, record))
    if record and record.git_commit:
        session.log_tags(state.run_id, {"git_commit": record.git_commit})
    if record and record.workers is not None:
        made = {
            "workers": str(record.workers),
            "nodes": ", ".join(record.nodes),
            "attempts": str(record.attempts),
        }
        if record.stacked is not None:
            made["stacked"] = str(record.stacked)
        session.log_tags(state.run_id, made)
    if (log := node.folder.path / LOG).exists():
        session.client.log_artifact(state.run_id, str(log))
    ended = record.finished if record else time.time()
    session.client.set_terminated(state.run_id, CLOSED_AS[node.status], int(ended * 1000))
    state.is_finished = True
    session.save()
