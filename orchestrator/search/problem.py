"""What is searched: a plan, its space and its metric, checked before anything starts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path as FilePath
from typing import Any

import yaml

from raydistill.errors import PlanError
from raydistill.kinds.searches import NoSchedulerConfig, PopulationConfig
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.plan.config_errors import Path
from raydistill.plan.fingerprint import fingerprint
from raydistill.plan.load import check_plan, source_of
from raydistill.plan.order import Graph, Node, order_stages
from raydistill.plan.own_metrics import metric_at
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan
from raydistill.plan.search import SearchConfig
from raydistill.plan.written import Source
from raydistill.runs.plan_run import plan_text
from raydistill.runs.search_run import SearchRun, TrialRecord
from raydistill.search.objective import Objective, find_objective
from raydistill.search.paths import check_path, source_with
from raydistill.search.population import written_values
from raydistill.search.suggestions import Suggestion

MANY_POINTS = 1000  # of a grid: more are asked about
VARIANTS = 256  # combinations of choices whose shared stages are made in advance


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """A search that can be run. `graph` is that of the plan as written."""

    source: Source
    plan: Plan
    graph: Graph
    config: SearchConfig
    metric: Objective
    paths: Mapping[str, Path]

    @cached_property
    def searched(self) -> frozenset[str]:
        """The stages that have a searched option."""
        return frozenset(str(path[0]) for path in self.paths.values())

    @cached_property
    def defaults(self) -> Any:
        """The plan with all defaults, as plain values."""
        return yaml.safe_load(plan_text(self.plan))

    @cached_property
    def fingerprint(self) -> str:
        """What makes two searches the same: more samples, time or room continue one."""
        stages = {name: node.fingerprint for name, node in self._needed(self.graph).nodes.items()}
        searched = self.config.model_dump(mode="json", include={"space", "searcher"}, exclude_none=True)
        searched["searcher"] = self.config.searcher.identified(searched["searcher"])
        judged = {"metric": str(self.metric), "mode": self.metric.mode, "seeds": self.replicas}
        if self.metric.cost is not None:
            judged["cost"] = self.metric.cost
        codes = {metric_at(address).name: code for address, code in self.graph.metrics.items()}
        if (code := codes.get(self.metric.metric.name)) is not None:
            judged["metric code"] = code
        if isinstance(self.config.scheduler, PopulationConfig):
            judged["population"] = self.config.scheduler.model_dump(mode="json")
        return fingerprint({"stages": stages, **searched, **judged})

    @property
    def trained(self) -> TrainingConfig:
        """The stage that is judged, where it is a training."""
        config = self.plan.stages[self.metric.stage]
        assert isinstance(config, TrainingConfig)
        return config

    @property
    def trials(self) -> int:
        """How many trials the search has when nothing ends it before."""
        scheduler = self.config.scheduler
        if isinstance(scheduler, PopulationConfig):
            return scheduler.population * scheduler.rounds(self.trained.epochs)
        return self.config.trials

    def written_values(self, trial: Suggestion | TrialRecord) -> Mapping[str, Any]:
        """What a trial's plan says at paths below its stages."""
        return trial.values if trial.segment is None else written_values(self.metric.stage, trial.segment)

    @property
    def replicas(self) -> int:
        """How many replicas of the metric's stage a trial trains."""
        return self.config.seeds or len(self.graph.replicas[self.metric.stage])

    def source_of(self, values: Mapping[str, Any]) -> Source:
        """The plan of a trial as the user would have written it."""
        changes = {self.paths.get(path, tuple(path.split("."))): value for path, value in values.items()}
        if self.config.seeds is not None:
            changes[self.metric.stage, "replicas"] = self.config.seeds
        return source_with(self.source, self.defaults, changes)

    def graph_of(self, values: Mapping[str, Any]) -> tuple[Plan, Graph]:
        """A trial's plan and all of its stages; `PlanError` when the values do not go together."""
        source = self.source_of(values)
        plan = check_plan(source)
        return plan, order_stages(plan)

    def trial_of(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The checked plan of a trial as JSON values, with the trial's resources; and the folders of its own nodes."""
        plan, graph = self.graph_of(values)
        written: dict[str, Any] = yaml.safe_load(plan_text(plan))
        own = self.trial_nodes(graph)
        for node in own:
            if node.stage in written["stages"]:
                written["stages"][node.stage]["resources"] = node.config.resources.model_dump(mode="json")
        return written, {node.name: node.folder for node in own}

    @cached_property
    def takes_several_workers(self) -> bool:
        """Whether a trial needs several workers at once: a data-parallel group, or models that train side by side."""
        own = [self.graph.nodes[name] for name in self.own_nodes(self.graph)]
        return any(node.peers or self._resources_of(node).workers > 1 for node in own)

    def trial_nodes(self, graph: Graph) -> list[Node]:
        """The nodes that a trial runs itself, with its resources."""
        own = [graph.nodes[name] for name in self.own_nodes(graph)]
        if self.takes_several_workers:
            resources = [self._resources_of(node) for node in own]
        else:  # one after another in one process
            judged = self.config.resources or self.plan.stages[self.metric.stage].resources
            resources = [judged] * len(own)
        return [
            replace(node, config=node.config.replace(resources=own_resources))
            for node, own_resources in zip(own, resources, strict=True)
        ]

    def _resources_of(self, node: Node) -> ResourcesConfig:
        """What a node gets that has workers to itself."""
        own: ResourcesConfig = node.config.resources
        return self.config.resources or own if isinstance(node.config, TrainingConfig) else own

    def folder(self, root: FilePath) -> FilePath:
        """Where the search lies on disk."""
        return SearchRun(root, self.plan.name, self.fingerprint).folder

    @property
    def has_many_points(self) -> bool:
        """Whether it is a grid so large that somebody should be asked."""
        return self.config.searcher.tries_all and self.config.trials > MANY_POINTS

    def check_number_of_points(self) -> None:
        """`PlanError` for a grid of many points."""
        if self.has_many_points:
            raise self.source.error(
                ("search", "space"),
                f"the grid has {self.config.trials:,} points; add `--yes` to try them all, set `samples`, or take"
                " `searcher: {name: random}`",
            )

    def check_local(self) -> None:
        """`PlanError` for what one process cannot do."""
        if self.config.scheduler.stops_trials:
            raise PlanError(
                f"`{self.config.scheduler.name}` stops trials that run side by side, which `--local` does not do; leave"
                " it out, or add `--set search.scheduler.name=none`"
            )

    def check_forced(self, nodes: Iterable[str]) -> None:
        """`PlanError` for a node that a trial runs itself."""
        dependent = dependent_nodes(self.graph, self.searched)
        for name in nodes:
            if name in dependent:
                raise PlanError(
                    f"--force {name}: it depends on what is searched, and finished trials are never repeated; give the"
                    " search another `seed`, or the stage"
                )

    def own_nodes(self, graph: Graph) -> list[str]:
        """The nodes for the metric that a trial runs itself: those of searched stages, and what reads them."""
        dependent = dependent_nodes(graph, self.searched)
        return [name for name in self._needed(graph).nodes if name in dependent]

    def shared_part(self, graph: Graph, only: Sequence[str] = ()) -> Graph:
        """The part of a trial's graph that does not depend on what is searched."""
        part = graph.needed_for([*only, self.metric.stage]) if only else graph
        dependent = dependent_nodes(graph, self.searched)
        return graph.needed_for([name for name in part.nodes if name not in dependent])

    def shared_parts(self, only: Sequence[str] = ()) -> Iterator[tuple[Plan, Graph]]:
        """The stages that trials share, once for every combination of choices that brings up new ones."""
        seen: set[str] = set()
        for values in self.variants():
            try:
                plan, graph = self.graph_of(values)
            except PlanError:  # choices that do not go together: such a trial fails
                continue
            part = self.shared_part(graph, only)
            folders = {node.folder for node in part.nodes.values()}
            if not folders <= seen:
                seen |= folders
                yield plan, part

    def variants(self) -> Iterator[dict[str, Any]]:
        """Values that bring up all stages which trials share: combinations of the choices, which may name other
        teachers or views. Of too many combinations, every choice once."""
        choices = {path: domain.choice for path, domain in self.config.space.items() if domain.choice}
        count = 1
        for options in choices.values():
            count *= len(options)
        if count <= VARIANTS:
            yield from (dict(zip(choices, options, strict=True)) for options in product(*choices.values()))
            return
        yield from ({path: option} for path, options in choices.items() for option in options)

    def _needed(self, graph: Graph) -> Graph:
        return graph.needed_for([self.metric.stage])


def dependent_nodes(graph: Graph, stages: Iterable[str]) -> set[str]:
    """The nodes of these stages, and all that read them."""
    chosen, dependent = set(stages), set[str]()
    for name, node in graph.nodes.items():
        if (node.stage in chosen and not node.inserted) or dependent.intersection(node.reads):
            dependent.add(name)
    return dependent


def build_problem(plan: Plan, graph: Graph) -> SearchProblem:
    """Check a plan's search against the plan; `PlanError` names the line."""
    config, source = plan.search, source_of(plan)
    if config is None:
        raise PlanError(
            f"{source.file}: the plan searches nothing; add `search: {{space: {{student.method.temperature:"
            " {loguniform: [1, 20]}}}`"
        )
    metric = find_objective(plan, config, graph, source)
    paths = {written: check_path(plan, source, written, domain) for written, domain in config.space.items()}
    problem = SearchProblem(source, plan, graph, config, metric, paths)
    _check_paths_apart(problem)
    _check_replicas(problem)
    for written, domain in config.space.items():
        for value in domain.ends:
            _check_values(problem, written, {written: value})
    _check_metric_depends(problem)
    _check_population(problem)
    return problem


def _check_paths_apart(problem: SearchProblem) -> None:
    paths = sorted(problem.paths.items(), key=lambda item: len(item[1]))
    for index, (outer, path) in enumerate(paths):
        for inner, longer in paths[index + 1 :]:
            if longer[: len(path)] == path:
                raise problem.source.error(
                    ("search", "space", inner),
                    f"lies within `{outer}`, which is searched too; keep one of them",
                )


def _check_values(problem: SearchProblem, written: str, values: Mapping[str, Any]) -> None:
    try:
        problem.graph_of(values)
    except PlanError as error:
        domain, hint = problem.config.space[written], ""
        if domain.choice is None and "a whole number" in error.message:
            hint = f"; write `{'log_' * domain.is_logarithmic}integer: [{domain.low:.0f}, {domain.high:.0f}]`"
        raise PlanError(f"{error.message} (in the search of `{written}`){hint}") from None


def _check_metric_depends(problem: SearchProblem) -> None:
    needed = problem.graph.needed_for([problem.metric.stage]).nodes
    for written, path in problem.paths.items():
        if not any(problem.graph.nodes[name].stage == path[0] for name in needed):
            raise problem.source.error(
                ("search", "space", written),
                f"`{problem.metric}` does not depend on `{path[0]}`; search a stage that it reads, or set `metric`",
            )


def _check_replicas(problem: SearchProblem) -> None:
    stage, source = problem.metric.stage, problem.source
    is_training = isinstance(problem.plan.stages[stage], TrainingConfig)
    if problem.config.seeds is not None and not is_training:
        raise source.error(
            ("search", "seeds"), f"`{stage}` trains nothing, so it has no seeds; leave `seeds` out"
        )
    scheduler = problem.config.scheduler
    if scheduler == NoSchedulerConfig():
        return
    name = scheduler.name
    if problem.graph.nodes[problem.graph.replicas[stage][0]].peers:
        raise source.error(
            ("search", "scheduler"),
            f"`{name}` follows one training per trial, but `{stage}` trains several models side by side; leave"
            " `scheduler` out",
        )
    if isinstance(scheduler, PopulationConfig):
        return
    if problem.replicas > 1:
        raise source.error(
            ("search", "scheduler"),
            f"`{name}` stops a trial by its first epochs, but {problem.replicas} replicas train one after the other;"
            " set `seeds: 1`, or leave `scheduler` out",
        )
    if not is_training or not problem.metric.metric.every_epoch:
        raise source.error(
            ("search", "scheduler"),
            f"`{name}` stops a trial by what it reports after every epoch, and `{problem.metric}` comes once, at the"
            " end; leave `scheduler` out",
        )


def _check_population(problem: SearchProblem) -> None:
    """A population trains one stage, once per member, and searches what may change in its midst."""
    scheduler, stage, error = problem.config.scheduler, problem.metric.stage, problem.source.error
    if not isinstance(scheduler, PopulationConfig):
        return
    config, place = problem.plan.stages[stage], ("search", "scheduler")
    if not isinstance(config, TrainingConfig):
        raise error(
            place, f"`pbt` trains the stage that is judged, and `{stage}` trains nothing; set `metric`"
        )
    if problem.replicas > 1:
        several = ("search", "seeds") if problem.config.seeds else ("stages", stage, "replicas")
        raise error(several, f"a member of `pbt` is one training, not {problem.replicas}; set it to 1")
    if scheduler.every >= config.epochs:
        message = f"the {config.epochs} epochs of `{stage}` end before the first decision; decide more often"
        raise error((*place, "every"), message)
    for key in ("changes", "until"):
        if getattr(config, key) is not None:
            raise error(("stages", stage, key), f"`pbt` writes the `{key}` of `{stage}` itself; leave it out")
    numbers = {f"{stage}.{path}" for path in config.changeable()}
    for written in problem.paths:
        if written not in numbers:
            known = ", ".join(f"`{path}`" for path in sorted(numbers))
            message = f"`{written}` cannot change while `{stage}` trains; `pbt` can search {known}"
            raise error(("search", "space", written), message)
        _check_moves(problem, written, scheduler.every)


def _check_moves(problem: SearchProblem, written: str, every: int) -> None:
    """A member may go from one end of a domain to the other."""
    domain, stage = problem.config.space[written], problem.metric.stage
    if not all(isinstance(value, int | float) for value in domain.ends):
        raise problem.source.error(("search", "space", written), "`pbt` multiplies values; write numbers")
    low, high = min(domain.ends), max(domain.ends)
    for first, then in ((low, high), (high, low)):
        change = {"after": every, "set": {written.removeprefix(f"{stage}."): then}}
        _check_values(problem, written, {written: first, f"{stage}.changes": [change]})
