"""Plans, runs and models for Python programs and notebooks; `raydistill` itself offers all of it.

What the command line says in a table is a value here: a `Preview` for each stage of a dry run, a `RunView` of a run.
Mistakes are a `DistillError` of one line, as there.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.errors import PlanError
from raydistill.execution.gpu_share import with_gpu_shares
from raydistill.execution.makespan import Room
from raydistill.execution.preview import DryRun, estimated, look_ahead
from raydistill.execution.ray_backend.connection import is_local
from raydistill.execution.ray_backend.feasible import check_feasible
from raydistill.execution.ray_backend.resources import Limit
from raydistill.execution.ray_backend.this_machine import this_machine
from raydistill.plan.advice import advice, shared_folders
from raydistill.plan.load import source_of
from raydistill.plan.model import names_registered_models
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.places import remarks_on_places
from raydistill.plan.schema import Plan
from raydistill.runs.mirror import open_storage, release_readers
from raydistill.runs.run_files import GRAPH
from raydistill.runs.search_view import SearchView, open_search, searches
from raydistill.runs.view import PLANS_FOLDER, RunView, StageView, runs_of
from raydistill.runs.view import open_run as open_run_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from raydistill.raw_model import RawModel
    from raydistill.search.preview import SearchPreview
    from raydistill.search.problem import SearchProblem
    from raydistill.tasks.survey import Survey
    from raydistill.training.trust import Trust

log = logging.getLogger(__name__)


def order(plan: Plan, only: Iterable[str] = ()) -> Graph:
    """The stages of a plan in their order, replicas expanded: those called `only` and what they read, or all.

    What the plan hardly means is logged as a warning; `PlanError` names the place of what cannot be run.
    """
    graph = order_stages(plan)
    for remark in _remarks(plan, graph):
        log.warning(remark)
    names = tuple(only)
    if names:
        graph = graph.needed_for(graph.called(names, "--only"))
    if graph.compares_features:  # which takes torch, and with it more than a second
        from raydistill.stages.model_probe import check_features

        check_features(graph, plan)
    return graph


def _remarks(plan: Plan, graph: Graph) -> Iterator[str]:
    yield from (f"note: {line}" for line in remarks_on_places(source_of(plan)))
    yield from (f"warning: {line}" for line in (*advice(plan), *shared_folders(graph)))


def with_fetched_models(plan: Plan, *, runs: Path | str = "runs", tracking_uri: str | None = None) -> Plan:
    """The plan with files of the storage root `runs` in the place of the models in MLflow (`models:/name/3`,
    `models:/name@alias`, `runs:/id/name`) that it begins from, as the tracking store has them now.

    `PlanError` where one cannot be had. A plan that names none is returned as it is.
    """
    if not names_registered_models(plan.stages.values()):
        return plan
    from raydistill.tracking.fetched_models import with_fetched_models as fetch

    return fetch(plan, _root(runs), tracking_uri)


def dry_run(
    plan: Plan,
    *,
    runs: Path | str = "runs",
    only: Iterable[str] = (),
    force: Iterable[str] = (),
    local: bool = False,
    address: str | None = None,
    tracking_uri: str | None = None,
    max_cpus: float | None = None,
    max_gpus: float | None = None,
) -> DryRun:
    """What `run` would do with each stage, and why: a list of a `Preview` for each, with an `estimate` of how long it
    takes, from records of like stages. Nothing is started, neither torch nor Ray is loaded.

    With the `address` of a Ray cluster `PlanError` for a stage that none of its machines can run, or that needs more
    than `max_cpus` and `max_gpus`; without one, `misfit` says that of this machine.
    """
    plan = with_fetched_models(plan, runs=runs, tracking_uri=tracking_uri)
    graph = order(plan, only)
    if graph.compares_features:
        from raydistill.stages.model_probe import store_sizes

        for line in store_sizes(graph, plan.task):
            log.warning("note: %s", line)
    root, limit = _root(runs), Limit(max_cpus, max_gpus)
    graph = with_gpu_shares(graph, root)
    prospects = look_ahead(graph, root, plan.name, graph.called(force, "--force"), plan.task)
    if address is not None:
        from raydistill.execution.ray_backend import RayBackend

        with closing(RayBackend(address, limit=limit)) as backend:
            backend.check_feasible(list(graph.nodes.values()))
            return estimated(prospects, graph, root, backend.room())
    if not local and not is_local(address):
        return DryRun(prospects)  # `RAY_ADDRESS` names a Ray cluster, and nobody asked to look at it
    found = estimated(prospects, graph, root, Room((this_machine(),), limit, one_by_one=local))
    try:
        if not local:
            check_feasible([one.node for one in found if not one.is_cached], [this_machine()], limit)
    except PlanError as error:
        found.misfit = error.message
    return found


def survey_labels(plan: Plan) -> "Survey | None":
    """Samples per split and class, and what they show; nothing is decoded, neither torch nor Ray is loaded.

    None where a task's labels cannot be read without its inputs: the survey of a run counts them.
    """
    from raydistill.tasks.survey import survey_labels as look

    return look(plan.task)


def run(
    plan: Plan,
    *,
    runs: Path | str = "runs",
    only: Iterable[str] = (),
    force: Iterable[str] = (),
    local: bool = False,
    address: str | None = None,
    tracking_uri: str | None = None,
    command: str = "",
    max_cpus: float | None = None,
    max_gpus: float | None = None,
) -> RunView:
    """Run what has no result yet below the storage root `runs`, report and track it; look at what is there then.

    `only` these stages and what they read; `force` these again. `local` runs in this process; otherwise on the Ray
    cluster at `address`, or on one that is started here, where all that runs at a time holds at most `max_cpus` CPUs
    and `max_gpus` GPUs. `command` is what the report shows as the way to run it again.

    A stage that fails does not raise: `RunView.status` is `failed`, and its `StageView.error` says why. An interrupt
    (SIGINT, the stop button of a notebook) lets stages write their checkpoints; the same call then goes on.
    `PlanError` where the plan, its data or its models cannot go well: said before any stage starts.
    """
    from raydistill.run_plan import RunOptions, run_plan

    root = _root(runs)
    plan = with_fetched_models(plan, runs=root, tracking_uri=tracking_uri)
    graph = order(plan, only)
    options = RunOptions(
        root,
        command,
        local,
        address,
        tracking_uri,
        tuple(force),
        max_cpus=max_cpus,
        max_gpus=max_gpus,
    )
    try:
        results = run_plan(plan, graph, options)
    finally:
        release_readers()
    return open_run_folder(root / PLANS_FOLDER / plan.name / results["run_id"], root)


def build_search(
    plan: Plan,
    *,
    runs: Path | str = "runs",
    only: Iterable[str] = (),
    force: Iterable[str] = (),
    tracking_uri: str | None = None,
) -> "SearchProblem":
    """What the `search` of a plan asks for; `PlanError` names the place of what cannot be searched.

    All trials begin from the models in MLflow that are there now: they are kept below `runs`."""
    from raydistill.search.problem import build_problem

    plan = with_fetched_models(plan, runs=runs, tracking_uri=tracking_uri)
    graph = order(plan)
    problem = build_problem(plan, graph)
    graph.called(only, "--only")
    problem.check_forced(graph.called(force, "--force"))
    return problem


def preview_search(
    search: "Plan | SearchProblem", *, runs: Path | str = "runs", only: Iterable[str] = ()
) -> "SearchPreview":
    """What `tune` would do: the stages that trials share, trials finished and left; nothing is started."""
    from raydistill.search.preview import look_ahead_of_search

    names = tuple(only)
    problem = build_search(search, runs=runs, only=names) if isinstance(search, Plan) else search
    return look_ahead_of_search(problem, _root(runs), names)


def tune(
    search: "Plan | SearchProblem",
    *,
    runs: Path | str = "runs",
    only: Iterable[str] = (),
    force: Iterable[str] = (),
    local: bool = False,
    address: str | None = None,
    tracking_uri: str | None = None,
    every_point: bool = False,
    command: str = "",
    max_cpus: float | None = None,
    max_gpus: float | None = None,
) -> SearchView:
    """Search what the plan's `search` names, or go on with that; look at what is there then. Options as of `run`.

    `search` is a plan, or what `build_search` made of it. `SearchView.best_plan` is the file of the winner's plan,
    `SearchView.trials()` are the records of all trials. A grid of many points is refused unless `every_point` is
    wanted.
    """
    from raydistill.run_plan import RunOptions
    from raydistill.search.run_search import run_search

    names, forced = tuple(only), tuple(force)
    if isinstance(search, Plan):
        problem = build_search(search, runs=runs, only=names, force=forced, tracking_uri=tracking_uri)
    else:
        problem = search
    if not every_point:
        problem.check_number_of_points()
    if local:
        problem.check_local()
    root = _root(runs)
    options = RunOptions(
        root, command, local, address, tracking_uri, forced, max_cpus=max_cpus, max_gpus=max_gpus
    )
    try:
        folder = run_search(problem, options, only=names)
    finally:
        release_readers()
    return open_search(folder, root)


def write_reports(plan: Plan, *, runs: Path | str = "runs") -> list[Path]:
    """Write the reports of a plan's last run and of its searches again; returns their files."""
    from raydistill.report import write_report, write_search_report

    root = _root(runs)
    last_runs, found = runs_of(root, plan.name), searches(root, plan.name)
    if not last_runs and not found:
        raise PlanError(
            f"plan `{plan.name}` has no run under `{runs}`; start one with `distill run {source_of(plan).file}`"
        )
    written = [write_report(last_runs[0], root)] if last_runs else []
    return [*written, *(write_search_report(search, root) for search in found)]


def open_run(run: Path | str, *, runs: Path | str = "runs") -> RunView:
    """Look at a run: `run` is its folder, or the name of a plan whose last run below `runs` is meant.

    `PlanError` when there is none, `StoreError` when its files cannot be read.
    """
    folder, root = Path(run).absolute(), _root(runs)
    if (folder / GRAPH).is_file():
        return open_run_folder(folder, folder.parents[2])
    if "/" in str(run) or not (found := runs_of(root, str(run))):
        raise PlanError(f"`{run}` is neither the folder of a run nor a plan that was run below `{root}`")
    return open_run_folder(found[0], root)


@dataclass(frozen=True)
class Predictions:
    """What a model says of N inputs: probabilities (N, C) float32, their classes in order."""

    probabilities: "NDArray[np.float32]"
    class_names: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """The most probable class of each input."""
        return [self.class_names[index] for index in self.probabilities.argmax(axis=1)]


def load_model(
    model: Path | str | StageView, *, runs: Path | str = "runs", trust: Sequence[str] = ()
) -> "RawModel":
    """The model of a finished stage, or of an exported folder, as a `torch.nn.Module` that takes raw inputs.

    A folder from outside the storage root `runs` builds only networks of ours and of torchvision, and calls no function
    that it names, unless that is of a module that you `trust`.
    """
    from raydistill.prediction import load_model as load_trained
    from raydistill.raw_model import RawModel

    folder, trusted = _place(model, runs, trust)
    return RawModel(load_trained(folder, trusted))


def predict(
    model: Path | str | StageView,
    inputs: "ArrayLike",
    *,
    runs: Path | str = "runs",
    trust: Sequence[str] = (),
) -> Predictions:
    """What a model says of a batch of arrays (N, ...): pictures as uint8 or scaled to [0, 1], all else as trained on.

    The model is that of a stage or of an exported folder, as for `load_model`; an `evaluate` stage stands for its
    ensemble or committee. `PlanError` for another shape.
    """
    from raydistill.prediction import load_predictor, predict_arrays

    folder, trusted = _place(model, runs, trust)
    predictor = load_predictor(folder, trusted)
    return Predictions(predict_arrays(predictor, inputs), predictor.first.class_names)


def _place(model: Path | str | StageView, runs: Path | str, trust: Sequence[str]) -> "tuple[Path, Trust]":
    """The folder of a model, and whom it may call."""
    from raydistill.training.trust import Trust

    if isinstance(model, StageView):
        folder = model.folder.path
        return folder, Trust(folder.parents[1], tuple(trust))
    return Path(model), Trust(_root(runs), tuple(trust))


def _root(runs: Path | str) -> Path:
    if not str(runs):
        raise PlanError("`runs` is empty; name the storage root, or leave it out for `runs`")
    return open_storage(runs).absolute()
