"""The MLflow run of a whole plan run: what was compared, the table of stages, plan, report and plots."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from raydistill.runs.run_files import PLAN, RESULTS
from raydistill.runs.search_run import BEST_PLAN, SEARCH
from raydistill.runs.view import WITH_RESULT, RunView, StageView
from raydistill.tracking import store
from raydistill.tracking.curves import Point
from raydistill.tracking.description import judgement, links_of, readable, table_of
from raydistill.tracking.session import Run, Session
from raydistill.tracking.settings import read_settings
from raydistill.tracking.state import CLOSED_AS


def open_parent(session: Session[RunView]) -> None:
    """Make the experiment and the parent run, or find them."""
    run, state = session.run, session.state
    if state.run_id is not None:
        return
    settings = read_settings(run.folder)
    experiment = (settings != "none" and settings.experiment) or run.plan
    state.experiment_id = store.open_experiment(session.client, session.uri, experiment, session.root)
    name = readable(run.run_id) if experiment == run.plan else f"{run.plan} {readable(run.run_id)}"
    state.run_id, _ = session.find_or_create(run.key, name, {}, run.started)
    session.save()


def link_cached(session: Session[RunView]) -> list[StageView]:
    """Tag the parent with the runs that trained the stages which did not run now; returns those that this store has
    never seen and that are still on disk: a store that is new shows them below this run."""
    known = session.state.cached
    cached = [node for node in session.run.stages.values() if node.status == "cached"]
    if new := [node for node in cached if node.name not in known]:
        experiments = [experiment.experiment_id for experiment in session.client.search_experiments()]
        found = {node.name: _trained_in(session, node, experiments) for node in new}
        session.log_tags(
            session.state.run_id,
            {
                f"cached.{node.name}": found[node.name] or f"{node.fingerprint}, was not in this store"
                for node in new
            },
        )
        known.update(found)
        session.save()
    return [node for node in cached if not known[node.name] and node.has_result]


def _trained_in(session: Session[RunView], node: StageView, experiments: list[str]) -> str:
    """The run of the stage, one that is finished if there is one: another driver's mirror may be a little behind."""
    condition = f"tags.fingerprint = '{node.fingerprint}' and attributes.status = "
    statuses = ("FINISHED", "RUNNING")
    found = (store.find_run(session.client, experiments, f"{condition} '{status}'") for status in statuses)
    return next(filter(None, found), "")


def push_comparison(session: Session[RunView]) -> None:
    """Every finished stage's judgement as metrics of the parent; of replicas their mean and deviation."""
    state = session.state
    points = [point for point in _comparison(session) if point.key not in state.compared]
    if points:
        session.log_points(state.run_id, points)
        state.compared += [point.key for point in points]
        session.save()


def _comparison(session: Session[RunView]) -> Iterator[Point]:
    for stage, entry in session.run.results.stages.items():
        members = [node for node in session.run.stages.values() if node.group == stage]
        if entry.status not in WITH_RESULT or not members:
            continue
        ended = max(node.record.finished if node.record else 0.0 for node in members)
        own = {own.name for node in members if node.record for own in node.record.judged_by if own.compared}
        for key, value in judgement(entry, own):
            yield Point(f"{stage}/{key}", value, int(ended * 1000), 0)


def push_table(session: Session[RunView]) -> None:
    """The table of stages as the parent's description, whenever it has changed; targets are told only if missing."""
    state = session.state
    told = [
        node
        for node in session.run.stages.values()
        if node.role != "targets" or node.status not in WITH_RESULT
    ]
    push_note(session, table_of(told, links_of(state)))


def push_note(session: Session[Run], note: str) -> None:
    """The parent's description, whenever it has changed."""
    state, digest = session.state, hashlib.sha256(note.encode()).hexdigest()
    if digest != state.table:
        session.log_tags(state.run_id, {"mlflow.note.content": note})
        state.table = digest
        session.save()


def push_files(session: Session[Run]) -> None:
    """The plan at once; results, best plan, report and plots when all is over, and again when they have changed."""
    state, folder = session.state, session.run.folder
    for name, signature in signatures(folder).items():
        if state.files.get(name) == signature or not (session.is_over or name == PLAN):
            continue
        parent = Path(name).parent
        session.client.log_artifact(state.run_id, str(folder / name), str(parent) if parent.name else None)
        state.files[name] = signature
        session.save()


def close_parent(session: Session[RunView]) -> None:
    """Give the parent its final status, and the commit that all of its new stages came from."""
    if session.state.closed_as == CLOSED_AS[session.run.status]:
        return
    records = [node.record for node in session.run.stages.values() if node.status == "done"]
    commits = {record.git_commit for record in records if record and record.git_commit}
    if len(commits) == 1:
        session.log_tags(session.state.run_id, {"git_commit": commits.pop()})
    give_final_status(session)


def give_final_status(session: Session[Run]) -> None:
    """Close a parent as its files say it ended."""
    state, status = session.state, CLOSED_AS[session.run.status]
    if state.closed_as == status:
        return
    session.client.set_terminated(state.run_id, status, int(session.run.ended * 1000))
    state.closed_as = status
    session.save()


def signatures(folder: Path) -> dict[str, str]:
    """The files of a plan run or a search that MLflow shows, each with a text that changes when the file does.

    Results count once: when they are final, only our own run id is still added to them.
    """
    names = (PLAN, RESULTS, SEARCH, BEST_PLAN, "report.html")
    files = [folder / name for name in names]
    found: dict[str, str] = {}
    for path in [*files, *sorted(folder.glob("plots/[!.]*"))]:
        if path.is_file():
            status = path.stat()
            changes = "" if path.name == RESULTS else f"{status.st_size}-{status.st_mtime_ns}"
            found[str(path.relative_to(folder))] = changes
    return found
