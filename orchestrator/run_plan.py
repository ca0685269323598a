"""`distill run`, from a loaded plan to the final table: the story of one plan run."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import ClusterLost, PlanError, StoreError
from raydistill.execution.estimate import Estimator
from raydistill.execution.gpu_share import with_gpu_shares
from raydistill.execution.overlap import OverlappedBackend
from raydistill.execution.request import Backend
from raydistill.execution.scheduler import run_stages
from raydistill.execution.survey import PlanSurvey, Remark, survey_plan
from raydistill.plan.order import Graph, Node
from raydistill.plan.schema import Plan
from raydistill.runs.files import make_folder
from raydistill.runs.folder import RECORD
from raydistill.runs.live_results import LiveResults
from raydistill.runs.mirror import mirror_at
from raydistill.runs.plan_run import (
    NodeState,
    PlanRun,
    copy_report,
    node_roles,
)
from raydistill.runs.record import summary_of
from raydistill.runs.run_files import (
    FINISHED,
    PLAN,
    REPORT,
    SUCCEEDED,
    UNTOUCHED,
)
from raydistill.runs.view import open_run, runs_of
from raydistill.terminal import Progress
from raydistill.tracking import Mirror, Untracked, exported_model

if TYPE_CHECKING:
    from raydistill.execution.ray_backend.resources import Limit

WAIT_INTERRUPTED = 3.0  # seconds for the tracking store when somebody wants this process to end

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about one run of a plan."""

    root: Path
    command: str = ""
    local: bool = False
    address: str | None = None
    tracking_uri: str | None = None
    force: tuple[str, ...] = ()
    is_reported: bool = True
    max_cpus: float | None = None
    max_gpus: float | None = None

    @property
    def limit(self) -> "Limit":
        """What all that runs at a time may hold."""
        from raydistill.execution.ray_backend.resources import Limit

        return Limit(self.max_cpus, self.max_gpus)


def run_plan(
    plan: Plan, graph: Graph, options: RunOptions, deferred: ExitStack | None = None
) -> dict[str, Any]:
    """Run what has no result yet, track it, report it; returns what `results.json` holds.

    Before the first stage starts, data and models are looked at: `PlanError` for what cannot go well. The
    wait for the tracking store is put off to the end of `deferred`, where that is given.
    """
    from raydistill.execution.run_stage import versions

    graph, forced = with_gpu_shares(graph, options.root), graph.called(options.force, "--force")
    make_folder(options.root / "stages")
    run = PlanRun(plan, graph, options.root, command=options.command, versions=versions())
    states = {name: NodeState() for name in graph.nodes}
    stop = threading.Event()
    with stopping_on_interrupt(stop), ExitStack() if deferred is None else nullcontext(deferred) as later:
        mirror = build_mirror(plan, run.folder, options)
        run.begin()
        mirror.check()
        later.callback(finish_tracking, mirror, run, states, stop)
        with results_written(run, states, stop):
            errors = run_on_backend(
                run, states, options, forced, stop, partial(use_the_wait, mirror, options)
            )
        mirror.hurry()
        nothing_ran = all(state.status in UNTOUCHED for state in states.values())
        if nothing_ran and (previous := drawn_before(run)) is not None:
            with report_attempted("distill report"):
                copy_report(previous, run.folder)
            mirror.adopt(previous)
        elif options.is_reported and not stop.is_set() and not errors:
            write_report_of(run)
    refuse(errors)
    return run.results


def build_mirror(plan: Plan, folder: Path, options: RunOptions) -> Mirror | Untracked:
    """What shows a run or a search in MLflow; `PlanError` when only the command line wants that."""
    if plan.tracking == "none":
        if options.tracking_uri is not None:
            raise PlanError(
                "the plan says `tracking: none`; leave `--tracking-uri` out, or add `--set tracking={}`"
            )
        return Untracked()
    return Mirror(folder, options.root, options.tracking_uri)


def use_the_wait(mirror: Mirror | Untracked, options: RunOptions) -> None:
    """Import now what the driver needs later: meanwhile the workers of the first stages take some seconds to start."""
    mirror.start()
    if options.is_reported:
        with suppress(Exception):  # whatever it is, the report meets it again, where it stops nothing
            import raydistill.report.plots  # noqa: F401 - matplotlib: a second


def finish_tracking(
    mirror: Mirror | Untracked, run: PlanRun, states: Mapping[str, NodeState], stop: threading.Event
) -> None:
    """Wait for what goes to the tracking store, and note where it went."""
    finish_mirror(mirror, run.plan, stop)
    run.mlflow = mirror.description()
    run.write_results(states, status_of(states, interrupted=stop.is_set()))


def finish_mirror(mirror: Mirror | Untracked, plan: Plan, stop: threading.Event) -> None:
    """Wait as long as the plan says; what is interrupted leaves no process behind."""
    if stop.is_set() or plan.tracking == "none":
        mirror.finish(WAIT_INTERRUPTED)
    else:
        mirror.finish(plan.tracking.wait_seconds, "in background")


@contextmanager
def results_written(run: PlanRun, states: Mapping[str, NodeState], stop: threading.Event) -> Iterator[None]:
    """`results.json` says that the run goes on, and afterwards how it ended, whatever ended it."""
    run.write_results(states, "running")
    try:
        yield
    except ClusterLost:
        stop.set()  # an interrupt, too: the same command goes on from here
        raise
    finally:
        for state in states.values():
            if state.status not in FINISHED:
                state.status = "stopped"
        run.write_results(states, status_of(states, interrupted=stop.is_set()))


def run_on_backend(
    run: PlanRun,
    states: dict[str, NodeState],
    options: RunOptions,
    forced: frozenset[str],
    stop: threading.Event,
    while_they_run: Callable[[], None],
) -> list[Remark]:
    """Run the stages; `states`, the terminal and `results.json` follow. Returns what kept them from being started."""
    found = PlanSurvey()
    # An export is no payload: a worker on another machine can only leave it where all see the same files.
    is_exported = run.plan.tracking != "none" and mirror_at(options.root) is None
    exports = exports_of(run) if is_exported else {}

    def watch(name: str, state: NodeState) -> None:
        states[name] = state
        progress.update(name, state)
        live.note_change()

    def look(nodes: Sequence[Node]) -> dict[str, str]:
        nonlocal found
        found = survey_plan(run.graph, nodes, backend, run.plan.task, options.root, stop)
        run.write_survey(found.to_dict())
        if not found.errors:
            estimator = Estimator(run.graph, options.root, backend.room())
            run.estimate = estimator.of({node.name: estimator.seconds(node.name) for node in nodes}).to_dict()
            run.left = progress.left
            progress.expect(estimator)
        return found.errors_of(nodes)

    with (
        closing(OverlappedBackend(build_backend(options, stop), exports, while_they_run)) as backend,
        Progress(states, run.graph, options.root) as progress,
        LiveResults(run, states) as live,
    ):
        run_stages(
            run.graph,
            backend,
            task=run.plan.task,
            root=options.root,
            forced=forced,
            stop=stop,
            watch=watch,
            survey=look,
        )
    return found.errors


def refuse(errors: Sequence[Remark]) -> None:
    """`PlanError`, a line for each error of a survey, unless there is none."""
    if errors:
        raise PlanError("\n".join(str(remark) for remark in errors))


def exports_of(run: PlanRun) -> dict[str, tuple[str, ...]]:
    """The exports of students for MLflow, as work for the processes that trained them: torch is loaded there
    already."""
    students = [run.graph.nodes[name] for name, role in node_roles(run.graph).items() if role == "student"]
    return {
        node.folder: (
            "raydistill.tracking.logged_model:export_noted",
            str(run.root / node.folder),
            str(exported_model(run.folder, node.name)),
        )
        for node in students
    }


def build_backend(options: RunOptions, stop: threading.Event) -> Backend:
    """The back end that the options ask for. Ray is not started before a stage needs it."""
    if options.local:
        from raydistill.execution.local_backend import LocalBackend

        return LocalBackend(stop)
    from raydistill.execution.ray_backend import RayBackend

    return RayBackend(options.address, limit=options.limit)


def status_of(states: Mapping[str, NodeState], *, interrupted: bool) -> str:
    """How the whole run ended."""
    if all(state.status in SUCCEEDED for state in states.values()):
        return "done"
    return "interrupted" if interrupted else "failed"


def drawn_before(run: PlanRun) -> Path | None:
    """An earlier run whose report can be used for this one, in which nothing ran: it has the same plan and stages, and
    all had ended as they are now when its report was drawn."""
    for folder in runs_of(run.root, run.plan.name):
        with suppress(StoreError, OSError):
            if folder != run.folder and shows_the_same(folder, run):
                return folder
    return None


def shows_the_same(earlier: Path, run: PlanRun) -> bool:
    """Whether an earlier run's report shows what that of `run` would. `OSError` when it has none, or no plan."""
    drawn = (earlier / REPORT).stat().st_mtime_ns
    if (earlier / PLAN).read_bytes() != (run.folder / PLAN).read_bytes():
        return False
    view = open_run(earlier, run.root)
    before = {name: stage.fingerprint for name, stage in view.stages.items()}
    if before != {name: node.fingerprint for name, node in run.graph.nodes.items()}:
        return False
    records = [run.root / node.folder / RECORD for node in run.graph.nodes.values()]
    return (
        view.graph.test == run.graph.test
        and view.status == "done"
        and all(path.stat().st_mtime_ns < drawn for path in records if path.exists())
    )


def write_report_of(run: PlanRun) -> None:
    """The run's report. Never fails a run."""
    with report_attempted("distill report"):
        from raydistill.report import write_report

        write_report(run.folder, run.root)


@contextmanager
def report_attempted(again: str) -> Iterator[None]:
    """One line when a report cannot be written: a picture or a full disk must not lose a run."""
    try:
        yield
    except Exception as error:
        log.debug("the report", exc_info=True)
        log.warning("the report could not be written: %s; `%s` tries again", summary_of(error), again)


@contextmanager
def stopping_on_interrupt(stop: threading.Event) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP ask for a clean stop; a second one ends at once. `nohup` keeps SIGHUP ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        log.warning("stopping: stages write their checkpoints; interrupt again to end at once")

    numbers = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
