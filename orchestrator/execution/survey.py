"""The survey before work: what is wrong with the data or with a model is found before the first stage starts.

It is made where stages run, through the same back end and under the same leases, in folders of its own under
`surveys/`, and remembered by what it looked at: a second plan over the same data pays nothing.
"""

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import StoreError
from raydistill.execution.request import Backend, Outcome, StageRequest
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.kinds.survey import (
    FOUND,
    OwnImplementation,
    ProbedModel,
    ProbeModelsConfig,
    StageLook,
    SurveyDataConfig,
    SurveyStagesConfig,
)
from raydistill.kinds.training import AlsoConfig
from raydistill.plan.config import configs_in
from raydistill.plan.fingerprint import fingerprint
from raydistill.plan.kind import Kind
from raydistill.plan.order import Graph, Node
from raydistill.plan.stage import StageConfig
from raydistill.runs.context import claim_attempt
from raydistill.runs.files import read_json
from raydistill.runs.folder import StageFolder
from raydistill.runs.lease import Leases
from raydistill.runs.mirror import storage_name
from raydistill.runs.plan_run import finished_record
from raydistill.tasks.task import Task

if TYPE_CHECKING:  # numpy, which a run of cached stages does not need
    from raydistill.tasks.survey import Level

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Remark:
    """One line that was found: about some stages, or about the data when it names none."""

    level: "Level"
    text: str
    stages: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = ", ".join(f"`{stage}`" for stage in self.stages)
        return f"{names}: {self.text}" if names else f"data: {self.text}"


@dataclass(frozen=True)
class PlanSurvey:
    """What a survey found. `counts`: split → samples per class."""

    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()

    @property
    def errors(self) -> list[Remark]:
        """What must be put right before anything starts."""
        return [remark for remark in self.remarks if remark.level == "error"]

    def errors_of(self, nodes: Sequence[Node]) -> dict[str, str]:
        """The errors by the nodes that they are about; those of the data belong to the nodes that would start first."""
        names = {node.name for node in nodes}
        first = [node.name for node in nodes if names.isdisjoint(node.reads)]
        texts: dict[str, list[str]] = {}
        for remark in self.errors:
            for name in remark.stages or first:
                texts.setdefault(name, []).append(remark.text)
        return {name: "; ".join(lines) for name, lines in texts.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"counts": dict(self.counts), "remarks": [asdict(remark) for remark in self.remarks]}


def survey_plan(
    graph: Graph,
    nodes: Sequence[Node],
    backend: Backend,
    task: Task,
    root: Path,
    stop: threading.Event | None = None,
) -> PlanSurvey:
    """Look at the data and at the models of the nodes that are about to run, of which there is at least one."""
    look = _Look(graph, backend, task, root, stop or threading.Event(), nodes[0])
    data = look.at(*survey_of_data(nodes))
    counts = data.get("counts", {})
    remarks = [Remark(**finding) for finding in data["findings"]]
    is_sound = not any(remark.level == "error" for remark in remarks)
    if is_sound and (looks := surveyed_stages(nodes)):
        identity: dict[str, Any] = {
            "stages": {name: graph.nodes[name].fingerprint for each in looks for name in each.stages}
        }
        seen = look.at(SurveyStagesConfig(looks=tuple(looks)), identity)
        remarks += [Remark(**finding) for finding in seen["findings"]]
    models, own = probed_models(graph, nodes, task), own_implementations(nodes)
    if not (models or own or graph.metrics) or any(remark.level == "error" for remark in remarks):
        return PlanSurvey(counts, tuple(remarks))
    identity = {"models": [_identity(probed) for probed in models]}
    if graph.metrics:
        identity["metrics"] = dict(graph.metrics)
    if own:
        identity["own"] = [part.identified(part.model_dump(mode="json")) for part in own.values()]
    probes = look.at(ProbeModelsConfig(models=tuple(models), implementations=tuple(own)), identity)
    remarks += [Remark(**finding) for finding in probes["findings"]]
    return PlanSurvey(counts, (*remarks, *remarks_on_models(graph, models, probes.get("models", ()), root)))


def survey_of_data(nodes: Sequence[Node]) -> tuple[SurveyDataConfig, dict[str, Any]]:
    """A look at the data and at what lies beside it for some of the nodes; and what it depends on besides."""
    found = (part for node in nodes for _, part in configs_in(node.config) if isinstance(part, AlsoConfig))
    pools = tuple({also.pool.content(): also for also in found}.items())
    identity = {"pools": [content for content, _ in pools]} if pools else {}
    return SurveyDataConfig(pools=tuple(also for _, also in pools)), identity


def remarks_on_models(
    graph: Graph, models: Sequence[ProbedModel], probes: Sequence[Mapping[str, Any]], root: Path
) -> list[Remark]:
    """Findings about the stages of some probed models, in their order; none from a survey that failed."""
    remarks, sizes = [], _finished_sizes(graph, root)
    for probed, probe in zip(models, probes, strict=False):
        sizes |= dict.fromkeys(probed.stages, probe["parameters"])
        if probe["error"]:
            remarks.append(Remark("error", probe["error"], probed.stages))
    asked = [graph.nodes[name] for probed in models for name in probed.stages]
    return remarks + _compare_sizes(graph, asked, sizes)


def probed_models(graph: Graph, nodes: Sequence[Node], task: Task) -> list[ProbedModel]:
    """Every model that these nodes build, those that are alike once."""
    found: dict[str, ProbedModel] = {}
    for node in nodes:
        for probed in _models_of(node, graph, task):
            key = probed.replace(stages=()).model_dump_json()
            stages = found[key].stages if key in found else ()
            found[key] = probed.replace(stages=(*stages, node.name))
    return list(found.values())


def surveyed_stages(nodes: Sequence[Node]) -> list[StageLook]:
    """What stages look at before work."""
    return [
        StageLook(stages=(node.name,), config=node.config.model_dump(mode="json"))
        for node in nodes
        if node.config.surveyed_by
    ]


def own_implementations(nodes: Sequence[Node]) -> dict[OwnImplementation, Kind]:
    """What does the work of the user's own kinds, each with a config that it is told by."""
    found: dict[str, tuple[set[str], Kind]] = {}
    for node in nodes:
        for _, part in configs_in(node.config):
            if isinstance(part, Kind) and part.own_modules:
                found.setdefault(part.implementation, (set(), part))[0].add(node.name)
    return {
        OwnImplementation(
            stages=tuple(sorted(names)), of=f"{part.chosen_by.noun} `{part.word}`", address=address
        ): part
        for address, (names, part) in found.items()
    }


def _models_of(node: Node, graph: Graph, task: Task) -> list[ProbedModel]:
    config = node.config
    if (model := config.existing_model) is not None:
        classes = model.num_classes or task.num_classes
        return [ProbedModel(stages=(node.name,), model=model, num_classes=classes, is_trained=False)]
    if not isinstance(config, TrainingConfig):
        return []
    return [
        ProbedModel(
            stages=(node.name,),
            model=model,
            num_classes=num_classes,
            workers=config.resources.workers,
            batch_size=config.batch_size,
            transfer=config.transfer if config.sees_transfer else None,
            with_unlabelled=config.learns_unlabelled and config.transfer.may_lack_labels(task),
            shards=config.data_shards,
            freeze=config.frozen,
            parameter_groups=config.grouped,
            initial=graph.model_of(config.initial) if config.initial and not config.grow else None,
        )
        for model, num_classes in config.trained_models(graph, task)
    ]


def _identity(probed: ProbedModel) -> dict[str, Any]:
    """What the outcome depends on: what the model is made from, and not which stage it belongs to."""
    initial = None if probed.initial is None else probed.initial.identity()
    values = probed.model_dump(mode="json", exclude={"stages"})
    return {**values, "model": probed.model.identity(), "initial": initial}


def _finished_sizes(graph: Graph, root: Path) -> dict[str, int | None]:
    records = {name: finished_record(root / node.folder) for name, node in graph.nodes.items()}
    return {name: record.parameters for name, record in records.items() if record is not None}


def _compare_sizes(graph: Graph, nodes: Sequence[Node], sizes: Mapping[str, int | None]) -> list[Remark]:
    """A teacher, or an assistant on the way down, that is smaller than its student."""
    remarks = []
    for node in nodes:
        own = sizes.get(node.name)
        for teacher in _teachers(node, graph):
            other = sizes.get(teacher)
            if own and other and other < own:
                is_assistant = bool(_teachers(graph.nodes[teacher], graph))
                remarks.append(
                    Remark(
                        "warning" if is_assistant else "note",
                        f"learns from {'the assistant ' if is_assistant else ''}`{teacher}`, which is smaller:"
                        f" {other:,} weights against {own:,}",
                        (node.name,),
                    )
                )
    return remarks


def _teachers(node: Node, graph: Graph) -> list[str]:
    """The nodes whose models a student learns from, live or through stored targets."""
    found: list[str] = []
    wanted = [str(ref) for ref in node.config.taught_by]
    while wanted:
        name = wanted.pop(0)
        if graph.model_of(name) is not None:
            found.append(name)
        else:
            wanted.extend(graph.nodes[name].reads)
    return list(dict.fromkeys(found))


class _Look:
    """Asks the back end as the scheduler would, for work that is no node of the graph."""

    def __init__(
        self, graph: Graph, backend: Backend, task: Task, root: Path, stop: threading.Event, like: Node
    ) -> None:
        self.graph, self.backend, self.task, self.root, self.stop = graph, backend, task, root, stop
        # On a worker of the shape that the first stage needs anyway: it stays warm for it.
        self.resources = like.config.resources.replace(workers=1, timeout=None)

    def at(self, config: StageConfig, looked_at: Mapping[str, Any]) -> dict[str, Any]:
        """What is found, from memory or anew; at least `findings`."""
        kind = config.safe_word()
        identity = {
            "kind": kind,
            "version": config.version,
            "task": {**self.graph.task, "test": self.graph.test},
            "config": dict(looked_at),
        }
        number = fingerprint(identity)
        folder = StageFolder(self.root / "surveys" / f"{kind}-{number}")
        if (found := _remembered(folder)) is not None:
            return found
        leases = Leases()
        try:
            while not leases.acquire(folder.path):
                if self.stop.is_set():
                    return {"findings": []}
                time.sleep(POLL_SECONDS)
            if (found := _remembered(folder)) is not None:
                return found
            return self._ask(config, kind, identity, number, folder)
        finally:
            leases.close()

    def _ask(
        self, config: StageConfig, kind: str, identity: dict[str, Any], number: str, folder: StageFolder
    ) -> dict[str, Any]:
        folder.create(identity)
        folder.unfinish()
        request = StageRequest(
            name="survey",
            kind=kind,
            fingerprint=number,
            folder=str(folder.path.relative_to(self.root)),
            root=storage_name(self.root),
            config=config.model_dump(mode="json"),
            identity=identity,
            task=self.task.model_dump(mode="json"),
            reads={},
            attempt=uuid.uuid4().hex,
            resources=self.resources.model_dump(mode="json"),
            task_identity=dict(self.graph.task),
            test=self.graph.test,
            metrics=dict(self.graph.metrics),
        )
        claim_attempt(folder, request.attempt)
        outcome = self._run(request)
        if outcome.status == "done":
            folder.fetch()
            return {"findings": [], **read_json(folder.path / FOUND)}
        if outcome.status == "stopped":
            return {"findings": []}
        text = f"the survey itself failed, and stages start without it: {outcome.error}"
        return {"findings": [{"level": "warning", "text": text}]}

    def _run(self, request: StageRequest) -> Outcome:
        while not self.stop.is_set() and not self.backend.try_start(request):
            self.backend.wait(POLL_SECONDS)
        while not self.stop.is_set():
            for _, outcome in self.backend.wait(POLL_SECONDS):
                return outcome
        self.backend.stop()
        return Outcome("stopped")


def _remembered(folder: StageFolder) -> dict[str, Any] | None:
    """The findings of an earlier look, unless there was an error among them: a user who fixed it expects a new look."""
    try:
        folder.refresh()
        if finished_record(folder.path) is None:
            return None
        found = {"findings": [], **read_json(folder.payload(FOUND))}
    except StoreError:
        return None
    is_wrong = any(finding["level"] == "error" for finding in found["findings"])
    return None if is_wrong or any(probe["error"] for probe in found.get("models", ())) else found
