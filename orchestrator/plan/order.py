"""From a plan to the complete graph: replicas expanded, target stages inserted, everything in order.

The graph is finished before anything starts, so that a dry run shows exactly what will run.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from raydistill.errors import PlanError, did_you_mean
from raydistill.metrics import Metric
from raydistill.plan.config import Config, Path, StageRef, configs_in, stage_refs
from raydistill.plan.fingerprint import fingerprint, stage_identity
from raydistill.plan.model import ModelConfig, models_in
from raydistill.plan.own_metrics import code_of_metric, metric_at
from raydistill.plan.schema import Plan
from raydistill.plan.sources import task_identity
from raydistill.plan.stage import StageConfig
from raydistill.tasks.task import Task, class_index


@dataclass(frozen=True)
class Node:
    """One stage to run: a replica, or a stage that the graph inserted.

    `config` names concrete nodes; `stage` is the name in the user's plan that this node belongs to. It waits for what
    it `reads`; `peers` run beside it and are looked at as they are.
    """

    name: str
    stage: str
    kind: str
    config: Any
    identity: Mapping[str, Any]
    fingerprint: str
    reads: tuple[str, ...]
    inserted: bool = False
    peers: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Folder of the node's result, relative to the storage root."""
        return f"stages/{self.kind}-{self.fingerprint}"


@dataclass
class Graph:
    """Nodes in an order in which every node comes after what it reads.

    `task` identifies what is learned from, `test` the split that models are judged on; `metrics` are the user's own,
    by address the digest of their code. `asked` are the nodes that somebody named, where not all of a plan is to run.
    """

    task: dict[str, Any]
    test: str
    nodes: dict[str, Node] = field(default_factory=dict)
    replicas: dict[str, tuple[str, ...]] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    metrics: Mapping[str, str] = field(default_factory=dict)

    @property
    def compares_features(self) -> bool:
        """Whether some stage looks at features."""
        return any(node.config.compares_features for node in self.nodes.values())

    def model_of(self, name: str) -> ModelConfig | None:
        """The architecture of the model that a node makes; None where that is not one model of the plan's own."""
        config: StageConfig = self.nodes[name].config
        while (other := config.stands_for) is not None:
            config = self.nodes[other].config
        return config.made_model()

    def called(self, names: Iterable[str], option: str) -> frozenset[str]:
        """The nodes of the stages or replicas called `names`; `PlanError` for one that is not there."""
        nodes: set[str] = set()
        for name in names:
            if name not in self.nodes and name not in self.replicas:
                known = {*self.replicas, *self.nodes}
                raise PlanError(f"{option} {name}: the plan has no such stage{did_you_mean(name, known)}")
            nodes.update(self.replicas.get(name, (name,)))
        return frozenset(nodes)

    def needed_for(self, names: Iterable[str]) -> "Graph":
        """The part of the graph that makes the stages or nodes called `names`."""
        wanted = [node for name in names for node in self.replicas.get(name, (name,))]
        asked = frozenset(wanted)
        keep: set[str] = set()
        while wanted:
            name = wanted.pop()
            if name not in keep:
                keep.add(name)
                wanted.extend((*self.nodes[name].reads, *self.nodes[name].peers))
        nodes = {name: node for name, node in self.nodes.items() if name in keep}
        return replace(self, nodes=nodes, asked=asked)


def order_stages(plan: Plan) -> Graph:
    """Expand and order a plan's stages; `PlanError` names the place of what does not fit together."""
    return _Expansion(plan).expand()


def sites(plan: Plan) -> "Iterator[tuple[StageConfig, Site]]":
    """Every stage of a plan that can be run, with what is around it."""
    expansion = _Expansion(plan)
    yield from ((config, Site(expansion, name)) for name, config in plan.stages.items())


class Site:
    """Where a part of a plan is looked at: which stage it belongs to, at which place of it, and what is around."""

    def __init__(self, expansion: "_Expansion", name: str, path: Path = ()) -> None:
        self._expansion, self.name, self.path = expansion, name, path

    def at(self, path: Path) -> "Site":
        """A place below this one."""
        return Site(self._expansion, self.name, (*self.path, *path))

    def error(self, message: str, *path: str | int) -> PlanError:
        """The error for what stands at `path` below this part."""
        return self._expansion.plan.error(("stages", self.name, *self.path, *path), message)

    @property
    def task(self) -> Task:
        """What is learned."""
        return self._expansion.plan.task

    @property
    def own_metrics(self) -> dict[str, type[Metric]]:
        """The user's metrics, by which models are judged beside ours, by address."""
        return {address: metric_at(address) for address in self._expansion.plan.metrics}

    def stage(self, ref: str) -> StageConfig:
        """The stage that a reference names, as the user wrote it."""
        return self._expansion.plan.stages[self.stage_name(ref)]

    def stage_name(self, ref: str) -> str:
        """What that stage is called: `teacher` for the replica `teacher.0`."""
        return self._expansion.stage_of(ref)

    def num_classes(self, ref: str | None = None) -> int:
        """Outputs of a stage's model, this one's when none is named."""
        return self._expansion.num_classes(self.name if ref is None else self.stage_name(ref))

    def is_read_as(self, key: str) -> bool:
        """Whether some stage names this one under a key of its own."""
        return self.name in self._expansion.read_as(key)

    def check_classes(self, labels: Iterable[int | str], *path: str | int) -> set[int]:
        """The indices of the classes in a list that stands at `path`; an error for one that is not there."""
        names, indices = self.task.class_names, set()
        for position, label in enumerate(labels):
            try:
                indices.add(class_index(names, label))
            except ValueError as error:
                hint = did_you_mean(label, names) if isinstance(label, str) else ""
                raise self.error(f"task `{self.task.name}`: {error}{hint}", *path, position) from None
        return indices

    def node(self, name: str) -> Node:
        """A node that is in the graph."""
        return self._expansion.graph.nodes[name]

    def insert(self, name: str, config: StageConfig) -> str:
        """Add a stage that the user did not write, or find one that is the same; returns the name of its node."""
        return self._expansion.insert(name, config)

    def check_distinct(self, members: Sequence[str], *path: str | int) -> None:
        """Nobody in a list of nodes is counted twice."""
        seen: dict[str, str] = {}
        counts = Counter(members)
        for member in members:
            same = seen.setdefault(self.node(member).fingerprint, member)
            if same == member and counts[member] > 1:
                raise self.error(f"`{member}` is named twice; `weights` make a member count more", *path)
            if same != member:
                raise self.error(
                    f"`{same}` and `{member}` would be equal to the last digit; give one another `seed`",
                    *path,
                )


class _Expansion:
    """The state of one expansion: the plan, and the graph made so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.graph = Graph({}, "")
        self._copies: dict[str, tuple[str, ...]] = {}
        self._outputs: dict[str, int] = {}
        self._same: dict[tuple[str, str], str] = {}
        self._inserted: Counter[str] = Counter()
        self._read_as: dict[str, set[str]] = {}

    def expand(self) -> Graph:
        metrics = {address: code_of_metric(address) for address in self.plan.metrics}
        self.graph = Graph(task_identity(self.plan.task), self.plan.task.test_content(), metrics=metrics)
        for name, config in self.plan.stages.items():
            self._check_refs(name, config)
        names = self._ordered_names()
        for name in names:
            for path, part in configs_in(self.plan.stages[name]):
                part.check(Site(self, name, path))
        for name in names:
            config = self.plan.stages[name]
            self.graph.replicas[name] = self._replicas(name)
            settled = self._with_nodes(config).settled(Site(self, name))
            nodes = self.graph.replicas[name]
            for index, node in enumerate(nodes):
                peers = tuple(nodes[peer] for peer in config.peers_of(index))
                self._add(node, name, self._with_index(config, settled, index), peers)
        return self.graph

    def _replicas(self, name: str) -> tuple[str, ...]:
        """The nodes of a stage: one, or one per copy."""
        if name not in self._copies:
            count = self.plan.stages[name].num_nodes(self.plan.stages)
            numbered = (name,) if count is None else tuple(f"{name}.{index}" for index in range(count))
            self._copies[name] = numbered
        return self._copies[name]

    def _ordered_names(self) -> list[str]:
        """The stages, each after what it reads; those that make targets as early as that allows.

        So a stage of targets that the user wrote is there before a student would have the same one inserted.
        """
        sorter = TopologicalSorter(
            {
                name: [self.stage_of(ref) for _, ref in stage_refs(config)]
                for name, config in self.plan.stages.items()
            }
        )
        try:
            sorter.prepare()
        except CycleError as error:
            raise self._circle(list(reversed(error.args[1][1:]))) from None
        ranks = {
            name: (config.makes != "targets", index, name)
            for index, (name, config) in enumerate(self.plan.stages.items())
        }
        ordered: list[str] = []
        ready: list[tuple[bool, int, str]] = []
        while sorter.is_active():
            for name in sorter.get_ready():
                heapq.heappush(ready, ranks[name])
            ordered.append(heapq.heappop(ready)[-1])
            sorter.done(ordered[-1])
        return ordered

    def _circle(self, names: list[str]) -> PlanError:
        """The error for stages of which each reads the next one and the last the first."""
        first = min(names, key=list(self.plan.stages).index)
        start = names.index(first)
        circle = [*names[start:], *names[:start], first]
        path = next(
            path for path, ref in stage_refs(self.plan.stages[first]) if self.stage_of(ref) == circle[1]
        )
        if len(circle) == 2:
            return self.plan.error(
                ("stages", first, *path), f"stage `{first}` reads itself; name another stage"
            )
        return self.plan.error(
            ("stages", first, *path),
            f"stages read one another in a circle: {' → '.join(circle)}; take one of them out",
        )

    def stage_of(self, ref: str) -> str:
        return ref if ref in self.plan.stages else ref.rpartition(".")[0]

    def _check_refs(self, name: str, config: StageConfig) -> None:
        for path, ref in stage_refs(config):
            place = ("stages", name, *path)
            stage = self.stage_of(ref)
            if stage not in self.plan.stages:
                raise self.plan.error(
                    place,
                    f"stage `{name}` reads `{ref}`, which the plan does not define"
                    f"{did_you_mean(ref, self.plan.stages)}",
                )
            self._check_replica(place, ref, stage)
            read = self.plan.stages[stage]
            if read.makes != ref.makes:
                choices = StageConfig.choices().items()
                makers = ", ".join(f"`{word}`" for word, kind in choices if kind.makes == ref.makes)
                raise self.plan.error(
                    place,
                    f"`{ref}` makes no {ref.makes}: its kind is `{read.stage}`; name a stage of {makers}",
                )

    def _check_replica(self, place: Path, ref: str, stage: str) -> None:
        replicas = [node for node in self._replicas(stage) if node != stage]
        if ref != stage and ref not in replicas:
            has = f"has the replicas `{replicas[0]}` to `{replicas[-1]}`" if replicas else "has no replicas"
            raise self.plan.error(place, f"`{ref}` is not there: `{stage}` {has}")
        if isinstance(place[-1], int) or ref != stage or len(replicas) < 2:
            return
        reader = str(place[1])
        is_zipped = place[-1] in self.plan.stages[reader].zipped
        if is_zipped and len(self._replicas(reader)) == len(replicas):
            return
        or_zip = f", or give `{reader}` as many: each then reads that of its number" if is_zipped else ""
        raise self.plan.error(
            place,
            f"one stage is read here, but `{stage}` has {len(replicas)} replicas; write `{stage}.0`{or_zip}",
        )

    def num_classes(self, name: str) -> int:
        """Outputs of a stage's model; of the first model that it reads, when it has none of its own."""
        if name not in self._outputs:
            self._outputs[name] = self._count_classes(self.plan.stages[name])
        return self._outputs[name]

    def _count_classes(self, config: StageConfig) -> int:
        for _, model in models_in(config):
            return model.num_classes or self.plan.task.num_classes
        refs = (ref for path, ref in stage_refs(config) if path[0] not in config.other_classes)
        source = next(refs, None)
        return self.plan.task.num_classes if source is None else self.num_classes(self.stage_of(source))

    def read_as(self, key: str) -> set[str]:
        """The stages that others name under a key of theirs."""
        if not self._read_as:
            for config in self.plan.stages.values():
                for path, ref in stage_refs(config):
                    self._read_as.setdefault(str(path[-1]), set()).add(self.stage_of(ref))
        return self._read_as.get(key, set())

    def _with_index(self, config: Any, resolved: Any, index: int) -> Any:
        """The config of one copy, which reads the copy of its number where there are several."""
        refs = {key: ref for key in config.zipped if (ref := getattr(config, key)) is not None}
        copies = {key: nodes[index] for key, ref in refs.items() if len(nodes := self._nodes_of(ref)) > 1}
        return resolved.for_node(index).replace(
            **{key: type(refs[key])(node) for key, node in copies.items()}
        )

    def _with_nodes(self, config: Any) -> Any:
        """The config, and the configs in it, with the nodes of every stage that they name."""
        changes: dict[str, Any] = {}
        for field_name in type(config).model_fields:
            value = getattr(config, field_name)
            if isinstance(value, tuple) and any(isinstance(item, StageRef) for item in value):
                changes[field_name] = tuple(type(ref)(node) for ref in value for node in self._nodes_of(ref))
            elif isinstance(value, StageRef):
                changes[field_name] = type(value)(self._nodes_of(value)[0])
            elif isinstance(value, Config) and next(stage_refs(value), None) is not None:
                changes[field_name] = self._with_nodes(value)
            elif isinstance(value, tuple) and next(stage_refs(value), None) is not None:
                changes[field_name] = tuple(map(self._with_nodes, value))
        return config.replace(**changes)

    def _nodes_of(self, ref: str) -> tuple[str, ...]:
        return self.graph.replicas.get(ref, (ref,))

    def insert(self, name: str, config: StageConfig) -> str:
        """Add a stage, or find the one that already is the same; a second of the same name gets a number."""
        probe = self._node(name, name, config, inserted=True)
        if (same := self._same.get((probe.kind, probe.fingerprint))) is not None:
            return same
        self._inserted[name] += 1
        if self._inserted[name] > 1:
            name = f"{name}.{self._inserted[name]}"
        self._put(replace(probe, name=name, stage=name))
        return name

    def _add(self, name: str, stage: str, config: StageConfig, peers: tuple[str, ...]) -> None:
        node = self._node(name, stage, config, inserted=False)
        self._put(replace(node, peers=peers))

    def _put(self, node: Node) -> None:
        self.graph.nodes[node.name] = node
        self._same.setdefault((node.kind, node.fingerprint), node.name)

    def _node(self, name: str, stage: str, config: Any, *, inserted: bool) -> Node:
        reads = tuple(dict.fromkeys(str(ref) for _, ref in stage_refs(config)))
        fingerprints = {ref: self.graph.nodes[ref].fingerprint for ref in reads}
        task = self.graph.task | ({"test": self.graph.test} if config.learns_from_test else {})
        identity = stage_identity(config, task, fingerprints)
        return Node(name, stage, config.safe_word(), config, identity, fingerprint(identity), reads, inserted)
