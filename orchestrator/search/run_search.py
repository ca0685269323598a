"""`distill tune`, from a checked search to its best plan: the story of one search."""

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from raydistill.errors import ClusterLost, DistillError, StoreError
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.preview import look_ahead
from raydistill.execution.survey import survey_plan
from raydistill.masking import mask
from raydistill.plan.load import check_plan, read_source
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.places import placed_values
from raydistill.plan.schema import Plan
from raydistill.run_plan import (
    RunOptions,
    build_backend,
    build_mirror,
    finish_mirror,
    refuse,
    report_attempted,
    run_plan,
    stopping_on_interrupt,
)
from raydistill.runs.files import atomic_write, make_folder
from raydistill.runs.folder import StageFolder
from raydistill.runs.lease import PATIENCE, Leases
from raydistill.runs.mirror import remove, send, storage_name
from raydistill.runs.plan_run import FastDumper, finished_record, plan_text
from raydistill.runs.search_formatting import called, short_names
from raydistill.runs.search_run import SearchRun, TrialRecord, front_of, now
from raydistill.runs.search_view import open_search
from raydistill.search.ending import Ending
from raydistill.search.problem import SearchProblem
from raydistill.search.progress import SearchProgress
from raydistill.search.trial_log import TrialLog
from raydistill.terminal import shown_path
from raydistill.tracking import Mirror, Untracked

log = logging.getLogger(__name__)


def run_search(problem: SearchProblem, options: RunOptions, *, only: Sequence[str] = ()) -> Path:
    """Run a search, or go on with it; returns its folder."""
    run = SearchRun(options.root, problem.plan.name, problem.fingerprint)
    run.begin()
    stop = threading.Event()
    with (
        owned(run),
        stopping_on_interrupt(stop),
        ExitStack() as deferred,
        shown(problem.plan, run, options, stop) as mirror,
        described(problem, run, options, stop) as description,
    ):
        run.interrupt_running()
        mirror.start()
        progress = SearchProgress(problem.metric, problem.config.space, problem.trials)
        trial_log = TrialLog(problem, run, progress)
        with connected(options, problem, needed=bool(trial_log.left)):
            if trial_log.left:
                look_ahead_of_trials(problem, options, stop)
            if trial_log.left and not stop.is_set():
                description["plan_runs"] += run_shared(problem, options, only, stop)
            if trial_log.left and not stop.is_set():
                run_trials_of(trial_log, run, options, stop)
            if problem.metric.cost == "latency" and not stop.is_set():
                measure_latencies_of(trial_log, run, description, stop)
            description["status"] = status_of(trial_log, stop)
            if description["status"] == "done" and trial_log.best is not None:
                description["front"] = write_front(problem, run)
                description["status"], description["best"] = finish(
                    problem, trial_log.best, run, options, only, deferred
                )
    return run.folder


@contextmanager
def shown(
    plan: Plan, run: SearchRun, options: RunOptions, stop: threading.Event
) -> Iterator[Mirror | Untracked]:
    """The search in MLflow, and at its end a report."""
    mirror = build_mirror(plan, run.folder, options)
    mirror.check()
    try:
        yield mirror
        if options.is_reported and not stop.is_set():
            write_report_of(run)
    finally:
        finish_mirror(mirror, plan, stop)


def write_report_of(run: SearchRun) -> None:
    """The search's report. Never fails a search."""
    with report_attempted("distill report"):
        from raydistill.report import write_search_report

        write_search_report(run.folder, run.root)


@contextmanager
def described(
    problem: SearchProblem, run: SearchRun, options: RunOptions, stop: threading.Event
) -> Iterator[dict[str, Any]]:
    """`search.json` says that the search goes on, and afterwards how it ended, whatever ended it."""
    began = time.monotonic()
    description = describe(problem, run, options)
    with atomic_write(run.folder / "plan.yaml") as temporary:
        temporary.write_text(plan_text(problem.plan), encoding="utf-8")
    send(run.folder / "plan.yaml")
    run.write(description)
    try:
        yield description
    except ClusterLost:
        stop.set()
        run.interrupt_running()
        description["status"] = "interrupted"
        raise
    finally:
        if description["status"] == "running":
            description["status"] = "failed"
        description["session_seconds"] = round(time.monotonic() - began, 3)
        description["seconds"] = round(description["seconds"] + description["session_seconds"], 3)
        run.write(description)


def run_trials_of(trial_log: TrialLog, run: SearchRun, options: RunOptions, stop: threading.Event) -> None:
    """The trials, on Ray or here."""
    ending = Ending(run, stop, trial_log.problem.config.budget_seconds)
    try:
        if options.local:
            from raydistill.search.local_trials import run_trials_here

            run_trials_here(trial_log, ending)
        else:
            from raydistill.execution.ray_backend.connection import is_local
            from raydistill.search.ray_trials import run_trials

            run_trials(trial_log, run, ending, is_own=is_local(options.address), limit=options.limit)
    finally:
        ending.clear()


def measure_latencies_of(
    trial_log: TrialLog, run: SearchRun, description: dict[str, Any], stop: threading.Event
) -> None:
    """What is measured when no trial runs any more."""
    from raydistill.search.latencies import measure_latencies

    def keep_machine(machine: str) -> None:
        description["machine"] = machine
        run.write(description)

    measure_latencies(trial_log, run.root, description["machine"], keep_machine, stop)


def look_ahead_of_trials(problem: SearchProblem, options: RunOptions, stop: threading.Event) -> None:
    """Data and models of the plan as it is written, before the first teacher trains; `PlanError` for what cannot go
    well. What deserves a word is logged."""
    graph, root = problem.graph, options.root
    nodes = [node for node in graph.nodes.values() if finished_record(root / node.folder) is None]
    if not nodes:
        return
    with closing(build_backend(options, stop)) as backend:
        backend.check_feasible(nodes[:1])
        if not options.local:
            use_the_wait_for_tune()
        found = survey_plan(graph, nodes, backend, problem.plan.task, root, stop)
    for remark in found.remarks:
        if remark.level == "warning":
            log.warning("warning: %s", remark)
    refuse(found.errors)


def use_the_wait_for_tune() -> None:
    """Import Ray Tune in a thread: a worker takes some seconds to start and to look."""
    from raydistill.search.ray_trials import import_tune

    def attempt() -> None:
        with suppress(Exception):  # whatever it is, the trials meet it again, where it is told
            import_tune()

    threading.Thread(target=attempt, name="import-tune", daemon=True).start()


def run_shared(
    problem: SearchProblem, options: RunOptions, only: Sequence[str], stop: threading.Event
) -> list[str]:
    """Run what trials share and has no result, as any plan is run; returns the folders of these runs. Sets `stop` when
    somebody interrupted them."""
    folders = []
    for plan, graph in problem.shared_parts(only):
        damaged = tuple(name for name in graph.nodes if is_damaged(graph, name, options.root))
        forced = tuple(name for name in options.force if name in graph.nodes or name in graph.replicas)
        prospects = look_ahead(graph, options.root, plan.name)
        if not damaged and not forced and all(prospect.is_cached for prospect in prospects):
            continue
        alone = replace(options, force=(*forced, *damaged), is_reported=False)
        results = run_plan(plan, graph, alone)
        folders.append(folder_of(plan, results))
        if results["status"] == "interrupted":
            stop.set()
            break
        if results["status"] != "done":
            entries = results["stages"].items()
            failed = next(f"`{name}`: {entry['error']}" for name, entry in entries if "error" in entry)
            raise DistillError(f"a stage that all trials share failed, so none was tried: {failed}")
        options = replace(options, force=())
    return folders


def is_damaged(graph: Graph, name: str, root: Path) -> bool:
    """Whether a stage has a result of which some file is damaged: found now, not by every trial again."""
    folder = root / graph.nodes[name].folder
    return finished_record(folder) is not None and StageFolder(folder).damage() is not None


def finish(
    problem: SearchProblem,
    best: TrialRecord,
    run: SearchRun,
    options: RunOptions,
    only: Sequence[str],
    deferred: ExitStack,
) -> tuple[str, dict[str, Any]]:
    """Write the best trial's plan and run it: all is cached but its judgement on the test split, and stages that no
    trial needed. Returns the status and what `search.json` says about the best. Its model is exported meanwhile."""
    write_best_plan(problem, best, run)
    source = read_source(run.best_plan)
    plan = check_plan(source)
    graph = order_stages(plan)
    if only:
        graph = graph.needed_for([*only, problem.metric.stage])
    results = run_plan(plan, graph, replace(options, force=()), deferred)
    judged = results["stages"][problem.metric.stage]
    return results["status"], {
        "trial": best.id,
        "number": best.number,
        "values": best.values,
        "metric": best.metric,
        "metrics": judged.get("metrics", {}),
        "plan": "best.yaml",
        "plan_run": folder_of(plan, results),
    }


def write_best_plan(problem: SearchProblem, best: TrialRecord, run: SearchRun) -> None:
    """The plan of the best trial."""
    why = f"The best of {len(run.trials())} trials of `{problem.plan.name}`, chosen by `{problem.metric}`"
    told = f"{why} ({best.metric:.5g}, {called(best)})"
    write_plan(problem, best, run, run.best_plan, told, f"{problem.plan.name[:95]}-best")


def write_front(problem: SearchProblem, run: SearchRun) -> list[dict[str, Any]]:
    """Write the plans of the trials that no other beats in metric and cost, and of no others; what `search.json` says
    about them. Their models are there: running such a plan judges one on the test split."""
    cost = problem.metric.cost
    if cost is None:
        return []
    make_folder(run.front)
    trials = run.trials()
    front = front_of(trials, problem.metric.mode)
    for trial in front:
        told = (
            f"One of {len(front)} trials of {len(trials)} of `{problem.plan.name}` that no other beats in both"
            f" `{problem.metric}` ({trial.metric:.5g}) and {cost} ({trial.cost:,g}, {called(trial)})"
        )
        name = f"{problem.plan.name[:88]}-trial-{trial.number}"
        write_plan(problem, trial, run, run.front / f"{trial.id}.yaml", told, name)
    for file in run.front.glob("*.yaml"):
        if file.stem not in {trial.id for trial in front}:
            file.unlink()
            remove(file)
    return [
        {
            "trial": trial.id,
            **trial.model_dump(mode="json", include={"number", "values", "metric", "cost"}),
            "plan": f"{run.front.name}/{trial.id}.yaml",
        }
        for trial in front
    ]


def write_plan(
    problem: SearchProblem, trial: TrialRecord, run: SearchRun, file: Path, told: str, name: str
) -> None:
    """A complete plan, without its search: the user's own with the trial's values."""
    source = problem.source_of(problem.written_values(trial))
    values = dict(placed_values(source))  # the plan lies in another folder
    values["name"] = name
    if problem.plan.tracking != "none":
        values["tracking"] = {**(values.get("tracking") or {}), "experiment": problem.plan.experiment}
    chosen = "\n".join(f"#   {path}: {json.dumps(value)}" for path, value in trial.values.items())
    header = f"# {told}:\n{chosen}\n#   distill run {shown_path(file)} --runs {shown_path(run.root)}\n"
    body = yaml.dump(values, Dumper=FastDumper, sort_keys=False, width=100, allow_unicode=True)
    with atomic_write(file) as temporary:
        temporary.write_text(header + body, encoding="utf-8")
    send(file)


def describe(problem: SearchProblem, run: SearchRun, options: RunOptions) -> dict[str, Any]:
    """What `search.json` says when a search begins, or goes on."""
    before = None
    with suppress(StoreError):  # the first time; and of a damaged one the trials tell all that matters
        before = open_search(run.folder, run.root).about
    config = problem.config.model_dump(mode="json", exclude_none=True)
    return {
        "plan": problem.plan.name,
        "fingerprint": problem.fingerprint,
        "file": problem.source.file,
        "command": mask(options.command),
        "storage": storage_name(options.root),
        "metric": str(problem.metric),
        "form": problem.metric.metric.form,
        "mode": problem.metric.mode,
        "cost": problem.metric.cost,
        "machine": before.machine if before else "",
        "replicas": problem.replicas,
        "experiment": problem.plan.experiment,
        "names": short_names(list(problem.paths)),
        "own": own_values(problem),
        **{key: config[key] for key in ("space", "searcher", "scheduler")},
        "samples": problem.trials,
        "status": "running",
        "started": before.started if before else now(),
        "seconds": before.seconds if before else 0.0,  # of all sessions
        "session_seconds": 0.0,
        "plan_runs": list(before.plan_runs) if before else [],
        "best": None,
        "front": [],
    }


def own_values(problem: SearchProblem) -> dict[str, Any]:
    """What the plan itself says at the searched paths."""
    values = {}
    for written, path in problem.paths.items():
        value = problem.defaults["stages"]
        with suppress(KeyError, IndexError, TypeError):  # an option that is left to the model
            for part in path:
                value = value[part]
            values[written] = value
    return values


def status_of(trial_log: TrialLog, stop: threading.Event) -> str:
    """How the trials ended."""
    if stop.is_set():
        return "interrupted"
    return "done" if trial_log.best is not None else "failed"


def folder_of(plan: Plan, results: Mapping[str, Any]) -> str:
    """The folder of a plan's run, below the storage root."""
    return f"plans/{plan.name}/{results['run_id']}"


@contextmanager
def owned(run: SearchRun) -> Iterator[None]:
    """The search is ours while its folder's lease is; `DistillError` when another driver runs it."""
    leases, deadline = Leases(), time.monotonic() + PATIENCE + 5
    try:
        while not leases.acquire(run.folder):
            # A live owner on this machine is seen at once; elsewhere it takes patience to tell it from a dead one.
            if time.monotonic() > deadline:
                raise DistillError(
                    f"another `distill tune` runs this search (`{run.folder}`); wait for it, or interrupt it"
                )
            time.sleep(1.0)
        yield
    finally:
        leases.close()


@contextmanager
def connected(options: RunOptions, problem: SearchProblem, *, needed: bool) -> Iterator[None]:
    """One Ray cluster for the shared stages, the trials and the best plan; `PlanError` if no trial ever fits, or
    a node does not see the storage root."""
    nodes = problem.trial_nodes(problem.graph)
    if options.local or not needed:
        if needed:
            LocalBackend().check_feasible(nodes)
        yield
        return
    from raydistill.execution.ray_backend import RayBackend
    from raydistill.execution.ray_backend.connection import connect, leave

    is_ours = connect(options.address)
    from raydistill.execution.ray_backend.storage import SharedStorage

    is_lost = False
    try:
        with closing(RayBackend(options.address, limit=options.limit, can_grow=False)) as backend:
            backend.check_feasible(nodes)
        SharedStorage().check(storage_name(options.root.resolve()))
        yield
    except ClusterLost:
        is_lost = True
        raise
    finally:
        if is_ours:
            leave(is_lost=is_lost)
