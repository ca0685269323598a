"""The MLflow runs of a search: one for the whole of it, and below it one for each trial.

A trial's stages get no runs of their own: their folders are tags of the trial, and what all trials share was run, and
is shown, as a plan run beside the search. A search that goes on continues the same runs.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raydistill.metrics import Accuracy
from raydistill.plan.search import Domain
from raydistill.runs.flat import flatten
from raydistill.runs.search_formatting import shown_cost
from raydistill.runs.search_run import TrialRecord, best_first
from raydistill.runs.search_view import BestTrial, SearchView
from raydistill.tracking import store
from raydistill.tracking.children import push_lines
from raydistill.tracking.curves import Point
from raydistill.tracking.description import COMPARED, MAX_NOTE, address, failure_tags
from raydistill.tracking.parent import give_final_status, push_files, push_note
from raydistill.tracking.session import Session
from raydistill.tracking.state import CLOSED_AS, ChildState, read_state

SHOWN = 20  # trials in the description
TAG = 5000  # characters of a tag that every store keeps

SearchSession = Session[SearchView]


def push_search(session: SearchSession) -> None:
    """Everything new of a search."""
    _open(session)
    finished = [name for name, state in session.state.trials.items() if state.is_finished]
    for trial in session.run.trials(but=finished):
        _push_trial(session, trial)
    if session.is_over:
        _push_front(session)
        _push_best(session)
        push_note(session, _note(session))
    push_files(session)
    if session.is_over:
        give_final_status(session)


def _open(session: SearchSession) -> None:
    """Make the experiment and the search's run, or find them, or take them up again."""
    run, state = session.run, session.state
    if state.run_id is None:
        name = run.about.experiment
        state.experiment_id = store.open_experiment(session.client, session.uri, name, session.root)
        state.run_id, _ = session.find_or_create(run.key, run.plan, {"kind": "search"}, run.started)
        session.log_params(state.run_id, _params(run))
        session.save()
    if state.closed_as is not None and not session.is_over:
        session.client.update_run(state.run_id, status="RUNNING")
        state.closed_as = None
        session.save()
    _push_settings(session)


def _params(run: SearchView) -> dict[str, str]:
    """What makes the search this one. Paths are whole here: the trials' params go by the short ones."""
    space = {f"space/{path}": _domain(domain) for path, domain in run.about.space.items()}
    return {**space, **flatten({"searcher": run.about.searcher.model_dump()})}


def _domain(domain: Domain) -> str:
    return f"{domain.kind} {json.dumps(getattr(domain, domain.kind))}"


def _push_settings(session: SearchSession) -> None:
    """Tags that another command may change."""
    run, state = session.run, session.state
    about = run.about
    tags = {
        "fingerprint": about.fingerprint,
        "metric": about.metric,
        "mode": about.mode,
        "searcher": about.searcher.name,
        "scheduler": about.scheduler.name,
        "samples": str(about.samples),
        "status": "interrupted" if session.is_over and run.status == "running" else run.status,
    }
    if about.cost is not None:
        tags["cost"] = about.cost
    shown = json.dumps(tags)
    if state.settings != shown:
        session.log_tags(state.run_id, tags)
        state.settings = shown
        session.save()


def _push_trial(session: SearchSession, trial: TrialRecord) -> None:
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


def _open_trial(session: SearchSession, trial: TrialRecord, state: ChildState) -> None:
    run = session.run
    tags = {"mlflow.parentRunId": str(session.state.run_id), "kind": "trial", "trial": str(trial.number)}
    key, name = f"{run.key}/{trial.id}", _name(run, trial)
    state.run_id, state.is_in_doubt = session.find_or_create(key, name, tags | _place(trial), trial.started)
    values = {_short(run, path): value for path, value in trial.values.items()}
    params = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    session.log_params(state.run_id, params)
    state.is_described = True
    session.save()


def _place(trial: TrialRecord) -> dict[str, str]:
    """What a trial is of a population; members and rounds are counted from 1."""
    if trial.segment is None:
        return {}
    places = {"member": trial.segment.member, "round": trial.segment.round, "donor": trial.segment.donor}
    return {key: str(place + 1) for key, place in places.items() if place is not None}


def _name(run: SearchView, trial: TrialRecord | BestTrial) -> str:
    """What the MLflow run of a trial is called: `trial 07`, or `member-03-round-2` in a population."""
    name = trial.id if isinstance(trial, TrialRecord) else trial.trial
    return name if run.is_population else f"trial {trial.number:02d}"


def _short(run: SearchView, path: str) -> str:
    """A searched path as people call it: `temperature`."""
    return run.about.names.get(path, path)


def _settle(session: SearchSession, trial: TrialRecord, state: ChildState) -> None:
    """Show how the trial ended, or that it goes on."""
    status = "interrupted" if session.is_over and trial.status == "running" else trial.status
    if state.shown == status:
        return
    tags = {"status": status, **{f"stage.{name}": folder for name, folder in trial.stages.items()}}
    session.log_tags(state.run_id, tags | (failure_tags(trial.error) if trial.error else {}))
    if status != "running":
        session.log_points(state.run_id, list(_judgement(session.run, trial)))
        ended = int((trial.finished or time.time()) * 1000)
        session.client.set_terminated(state.run_id, CLOSED_AS[status], ended)
    elif state.shown:
        session.client.update_run(state.run_id, status="RUNNING")
    state.shown, state.is_finished = status, trial.is_over
    session.save()


def _judgement(run: SearchView, trial: TrialRecord) -> Iterator[Point]:
    """The final metrics, at the last epoch. A store that has a point already drops it."""
    if not trial.is_over:
        return
    step, at = max(trial.epochs, default=0), int((trial.finished or 0.0) * 1000)
    told = {run.metric: trial.metric, **trial.metrics, "seconds": trial.seconds}
    for key, value in told.items():
        # The last epoch's value is in the curve, unless the trial was judged by another epoch's weights.
        if value is not None and not (key == run.metric and value == trial.epochs.get(step)):
            yield Point(key, value, at, step)


def _push_front(session: SearchSession) -> None:
    """Of a search with a cost: what the trials' models cost, and a tag for those that no other trial beats."""
    run, state = session.run, session.state
    if (cost := run.about.cost) is None:
        return
    for trial in run.trials():
        child = state.trials.get(trial.id)
        if child is None or child.run_id is None or trial.cost is None or trial.cost == child.cost:
            continue
        with session.passing_over_deleted(child):
            step, at = max(trial.epochs, default=0), int(1000 * (trial.finished or 0.0))
            session.log_points(child.run_id, [Point(f"cost/{cost}", trial.cost, at, step)])
            child.cost = trial.cost
            session.save()
    front = [trial for trial in run.front() if trial.id in state.trials]
    names = [trial.id for trial in front]
    if names == state.front:
        return
    for name in state.front:
        if name not in names:
            with session.passing_over_deleted(state.trials[name]):
                session.client.delete_tag(state.trials[name].run_id, "front")
    for name in names:
        if name not in state.front:
            with session.passing_over_deleted(state.trials[name]):
                session.log_tags(state.trials[name].run_id, {"front": "true"})
    session.log_tags(state.run_id, {"front": _listed(run, front)[:TAG]})
    state.front = names
    session.save()


def _push_best(session: SearchSession) -> None:
    """Tag the winner, and give it and the search its judgement on the test split."""
    run, state = session.run, session.state
    winner = run.about.best
    child = state.trials.get(winner.trial) if winner else None
    if winner is None or state.best == winner.trial or child is None or child.run_id is None:
        return
    if state.best is not None:
        before = state.trials[state.best]
        with session.passing_over_deleted(before):
            session.client.delete_tag(before.run_id, "best")
    at, judged = int(run.ended * 1000), winner.metrics
    step = max(child.steps.values(), default=0)
    test = [Point(key, value, at, step) for key, value in judged.items() if key.startswith("test/")]
    with session.passing_over_deleted(child):
        session.log_tags(child.run_id, {"best": "true"})
        session.log_points(child.run_id, test)
    searched = run.metric.partition("/")[2]
    compared = [
        Point(key, value, at, 0)
        for key, value in judged.items()
        if key in COMPARED or key.partition("/")[2] == searched
    ]
    session.log_points(state.run_id, compared)
    session.log_tags(state.run_id, {"best": _name(run, winner)})
    state.best = winner.trial
    session.save()


def _note(session: SearchSession) -> str:
    """The search's description: where its stages and its best plan ran, and the best trials."""
    run = session.run
    parts = [_told_best(session), _told_plan_runs(session), _table(session)]
    commands = f"`{run.about.command}`"
    text = "\n\n".join([*(part for part in parts if part), commands])
    return text if len(text) <= MAX_NOTE else text[:MAX_NOTE].rpartition("\n")[0]


def _told_best(session: SearchSession) -> str:
    run, best = session.run, session.run.about.best
    if best is None:
        return f"{run.status}: no best trial yet"
    values = ", ".join(f"{_short(run, path)} {_text(value)}" for path, value in best.values.items())
    test = best.metrics.get(Accuracy.on("test"))
    judged = "" if test is None else f", {Accuracy.text(test)} on the test split"
    return f"**Best: {_name(run, best)}** ({values}): {run.metric} {best.metric:.5g}{judged}"


def _told_plan_runs(session: SearchSession) -> str:
    about = session.run.about
    told = [("what all trials share", path) for path in about.plan_runs]
    if about.best:
        told.append(("the best plan", about.best.plan_run))
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
    names = [_short(run, path) for path in run.about.space]
    names += [run.about.cost] if run.about.cost else []
    lines = [
        f"{len(trials)} trials: {counts}\n",
        f"| trial | {' | '.join(names)} | {run.metric} | epochs |",
        f"|---|{'---:|' * (len(names) + 2)}",
    ]
    done = [trial for trial in trials if trial.status == "done" and trial.metric is not None]
    done = best_first(done, run.about.mode)
    if front := run.front():
        lines[0] = (
            f"{lines[0]}\nNo other beats, by {run.metric} and {run.about.cost}: {_listed(run, front)}\n"
        )
    return "\n".join([*lines, *(_row(session, trial) for trial in done[:SHOWN])])


def _listed(run: SearchView, trials: Sequence[TrialRecord]) -> str:
    return ", ".join(_name(run, trial) for trial in trials)


def _row(session: SearchSession, trial: TrialRecord) -> str:
    run, state = session.run, session.state
    child = state.trials.get(trial.id)
    name = _name(run, trial)
    if child is not None and child.run_id is not None:
        name = f"[{name}]({address(state.experiment_id, child.run_id)})"
    cells = [
        name,
        *(_text(trial.values.get(path)).replace("|", "/") for path in run.about.space),
        *([shown_cost(run.about.cost, trial.cost)] if run.about.cost else []),
        f"{trial.metric:.5g}",
        str(max(trial.epochs, default="")),
    ]
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
