"""The MLflow runs of a search: one for the whole of it, and below it one for each trial.

A trial's stages get no runs of their own: their folders are tags of the trial, and what all trials share was run, and
is shown, as a plan run beside the search. A search that goes on continues the same runs.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raydistill.tracking import store
from raydistill.tracking.children import push_lines
from raydistill.tracking.curves import Point, is_number
from raydistill.tracking.description import COMPARED, MAX_NOTE, address, failure_tags, flatten
from raydistill.tracking.parent import give_final_status, push_files, push_note
from raydistill.tracking.search_run import TrackedSearch, TrackedTrial
from raydistill.tracking.session import Session
from raydistill.tracking.state import CLOSED_AS, ChildState, read_state

SHOWN = 20  # trials in the description

SearchSession = Session[TrackedSearch]


def push_search(session: SearchSession) -> None:
    """Everything new of a search."""
    _open(session)
    finished = [name for name, state in session.state.trials.items() if state.is_finished]
    for trial in session.run.trials(but=finished):
        _push_trial(session, trial)
    if session.is_over:
        _push_best(session)
        push_note(session, _note(session))
    push_files(session)
    if session.is_over:
        give_final_status(session)


def _open(session: SearchSession) -> None:
    """Make the experiment and the search's run, or find them, or take them up again."""
    run, state = session.run, session.state
    if state.run_id is None:
        state.experiment_id = store.open_experiment(session.client, session.uri, run.experiment, session.root)
        state.run_id, _ = session.find_or_create(run.key, run.plan, {"kind": "search"}, run.started)
        session.log_params(state.run_id, _params(run.description))
        session.save()
    if state.closed_as is not None and not session.is_over:
        session.client.update_run(state.run_id, status="RUNNING")
        state.closed_as = None
        session.save()
    _push_settings(session)


def _params(description: Mapping[str, Any]) -> dict[str, str]:
    """What makes the search this one. Paths are whole here: the trials' params go by the short ones."""
    space = {f"space/{path}": _domain(domain) for path, domain in description["space"].items()}
    return {**space, **flatten({"searcher": description["searcher"]})}


def _domain(domain: Mapping[str, Any]) -> str:
    kind, values = next(iter(domain.items()))
    return f"{kind} {json.dumps(values)}"


def _push_settings(session: SearchSession) -> None:
    """Tags that another command may change."""
    run, state = session.run, session.state
    description = run.description
    tags = {
        "fingerprint": str(description["fingerprint"]),
        "metric": str(description["metric"]),
        "mode": str(description["mode"]),
        "searcher": str(description["searcher"]["name"]),
        "scheduler": str(description["scheduler"]["name"]),
        "samples": str(description["samples"]),
        "status": "interrupted" if session.is_over and run.status == "running" else run.status,
    }
    shown = json.dumps(tags)
    if state.settings != shown:
        session.log_tags(state.run_id, tags)
        state.settings = shown
        session.save()


def _push_trial(session: SearchSession, trial: TrackedTrial) -> None:
    state = session.state.trials.setdefault(trial.id, ChildState())
    with session.passing_over_deleted(state):
        if state.run_id is None:
            _open_trial(session, trial, state)
        ended = trial.finished or time.time()
        lines = [
            {"step": epoch, "time": ended, session.run.metric: value}
            for epoch, value in sorted(trial.epochs.items())
        ]
        push_lines(session, state, lines)
        _settle(session, trial, state)


def _open_trial(session: SearchSession, trial: TrackedTrial, state: ChildState) -> None:
    run = session.run
    tags = {"mlflow.parentRunId": str(session.state.run_id), "kind": "trial", "trial": str(trial.number)}
    key, name = f"{run.key}/{trial.id}", run.called(trial.id, trial.number)
    state.run_id, state.is_in_doubt = session.find_or_create(key, name, tags | _place(trial), trial.started)
    values = {run.short(path): value for path, value in trial.values.items()}
    params = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    session.log_params(state.run_id, params)
    state.is_described = True
    session.save()


def _place(trial: TrackedTrial) -> dict[str, str]:
    """What a trial is of a population; members and rounds are counted from 1."""
    places = {key: (trial.segment or {}).get(key) for key in ("member", "round", "donor")}
    return {key: str(place + 1) for key, place in places.items() if place is not None}


def _settle(session: SearchSession, trial: TrackedTrial, state: ChildState) -> None:
    """Show how the trial ended, or that it goes on."""
    status = "interrupted" if session.is_over and trial.status == "running" else trial.status
    if state.shown == status:
        return
    tags = {"status": status, **{f"stage.{name}": folder for name, folder in trial.stages.items()}}
    session.log_tags(state.run_id, tags | (failure_tags(trial.error, {}) if trial.error else {}))
    if status != "running":
        session.log_points(state.run_id, list(_judgement(session.run, trial)))
        ended = int((trial.finished or time.time()) * 1000)
        session.client.set_terminated(state.run_id, CLOSED_AS[status], ended)
    elif state.shown:
        session.client.update_run(state.run_id, status="RUNNING")
    state.shown, state.is_finished = status, trial.is_over
    session.save()


def _judgement(run: TrackedSearch, trial: TrackedTrial) -> Iterator[Point]:
    """The final metrics, at the last epoch. A store that has a point already drops it."""
    if not trial.is_over:
        return
    step, at = max(trial.epochs, default=0), int((trial.finished or 0.0) * 1000)
    told = {run.metric: trial.metric, **trial.metrics, "seconds": trial.seconds}
    for key, value in told.items():
        # The last epoch's value is in the curve, unless the trial was judged by another epoch's weights.
        if value is not None and not (key == run.metric and value == trial.epochs.get(step)):
            yield Point(key, value, at, step)


def _push_best(session: SearchSession) -> None:
    """Tag the winner, and give it and the search its judgement on the test split."""
    run, state = session.run, session.state
    winner = run.best.get("trial")
    child = state.trials.get(str(winner))
    if winner is None or state.best == winner or child is None or child.run_id is None:
        return
    if state.best is not None:
        before = state.trials[state.best]
        with session.passing_over_deleted(before):
            session.client.delete_tag(before.run_id, "best")
    at, judged = int(run.ended * 1000), run.best.get("metrics", {})
    step = max(child.steps.values(), default=0)
    test = [Point(key, value, at, step) for key, value in judged.items() if key.startswith("test/")]
    with session.passing_over_deleted(child):
        session.log_tags(child.run_id, {"best": "true"})
        session.log_points(child.run_id, test)
    compared = [Point(key, value, at, 0) for key, value in judged.items() if key in COMPARED]
    session.log_points(state.run_id, compared)
    session.log_tags(state.run_id, {"best": run.called(winner, run.best["number"])})
    state.best = str(winner)
    session.save()


def _note(session: SearchSession) -> str:
    """The search's description: where its stages and its best plan ran, and the best trials."""
    run = session.run
    parts = [_told_best(session), _told_plan_runs(session), _table(session)]
    commands = f"`{run.description.get('command', 'distill tune')}`"
    text = "\n\n".join([*(part for part in parts if part), commands])
    return text if len(text) <= MAX_NOTE else text[:MAX_NOTE].rpartition("\n")[0]


def _told_best(session: SearchSession) -> str:
    run = session.run
    if not run.best:
        return f"{run.status}: no best trial yet"
    values = ", ".join(f"{run.short(path)} {_text(value)}" for path, value in run.best["values"].items())
    test = run.best.get("metrics", {}).get("test/accuracy")
    judged = f", {test:.2%} on the test split" if is_number(test) else ""
    return (
        f"**Best: {run.called(run.best['trial'], run.best['number'])}** ({values}):"
        f" {run.metric} {run.best['metric']:.5g}{judged}"
    )


def _told_plan_runs(session: SearchSession) -> str:
    run = session.run
    told = [("what all trials share", path) for path in run.description.get("plan_runs", [])]
    if run.best.get("plan_run"):
        told.append(("the best plan", str(run.best["plan_run"])))
    links = [f"{what}: {_link(session, Path(path))}" for what, path in told]
    return "\n".join(f"- {link}" for link in links)


def _link(session: SearchSession, path: Path) -> str:
    """A plan run by its id, with a link where it is in the same store."""
    state = read_state(session.root / path)
    if state is None or state.run_id is None or state.tracking_uri != session.state.tracking_uri:
        return path.name
    return f"[{path.name}]({address(state.experiment_id, state.run_id)})"


def _table(session: SearchSession) -> str:
    """How many trials ended how, and the best finished ones."""
    run, trials = session.run, session.run.trials()
    outcomes = Counter(trial.status.replace("_", " ") for trial in trials)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
    names = [run.short(path) for path in run.description["space"]]
    lines = [
        f"{len(trials)} trials: {counts}\n",
        f"| trial | {' | '.join(names)} | {run.metric} | epochs |",
        f"|---|{'---:|' * (len(names) + 2)}",
    ]
    done = [trial for trial in trials if trial.status == "done" and trial.metric is not None]
    sign = 1.0 if run.description["mode"] == "max" else -1.0
    done.sort(key=lambda trial: (trial.round, sign * (trial.metric or 0.0)), reverse=True)
    return "\n".join([*lines, *(_row(session, trial) for trial in done[:SHOWN])])


def _row(session: SearchSession, trial: TrackedTrial) -> str:
    run, state = session.run, session.state
    child = state.trials.get(trial.id)
    name = run.called(trial.id, trial.number)
    if child is not None and child.run_id is not None:
        name = f"[{name}]({address(state.experiment_id, child.run_id)})"
    cells = [
        name,
        *(_text(trial.values.get(path)).replace("|", "/") for path in run.description["space"]),
        f"{trial.metric:.5g}",
        str(max(trial.epochs, default="")),
    ]
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
