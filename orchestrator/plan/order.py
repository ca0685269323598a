"""From a plan to the complete graph: replicas expanded, target stages inserted, everything in order.

The graph is finished before anything starts, so that a dry run shows exactly what will run.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from raydistill.errors import PlanError, did_you_mean
from raydistill.kinds.augmentations import MixupConfig
from raydistill.kinds.changes import mistakes_of_changes, phases
from raydistill.kinds.data_free import SynthesizeConfig
from raydistill.kinds.kept_classes import mistakes_of_top_k
from raydistill.kinds.model_sources import missing_source
from raydistill.kinds.models import ModelConfig, models_in
from raydistill.kinds.specialists import ConfusionClustersConfig
from raydistill.kinds.stage_bases import StageConfig, TrainingConfig
from raydistill.kinds.stages import (
    STAGES,
    AdjustClassBiasConfig,
    CombineConfig,
    CombineTargetsConfig,
    CommitteeConfig,
    DistillConfig,
    PredictTargetsConfig,
)
from raydistill.kinds.training import TransferConfig
from raydistill.plan.config import ModelRef, Path, StageRef, TargetsRef, stage_refs
from raydistill.plan.fingerprint import fingerprint, stage_identity
from raydistill.plan.schema import Plan
from raydistill.tasks.task import class_index

Locate = Callable[[Path, str], PlanError]


@dataclass(frozen=True)
class Node:
    """One stage to run: a replica, or a stage that the graph inserted.

    `config` names concrete nodes; `stage` is the name in the user's plan that this node belongs to. It waits for what
    it `reads`; `siblings` run beside it and are looked at as they are.
    """

    name: str
    stage: str
    kind: str
    config: Any
    identity: Mapping[str, Any]
    fingerprint: str
    reads: tuple[str, ...]
    inserted: bool = False
    siblings: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Folder of the node's result, relative to the storage root."""
        return f"stages/{self.kind}-{self.fingerprint}"


@dataclass
class Graph:
    """Nodes in an order in which every node comes after what it reads.

    `task` identifies what is learned from, `test` the split that models are judged on. `asked` are the nodes that
    somebody named, where not all of a plan is to run.
    """

    task: dict[str, Any]
    test: str
    nodes: dict[str, Node] = field(default_factory=dict)
    replicas: dict[str, tuple[str, ...]] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    @property
    def compares_features(self) -> bool:
        """Whether some student looks at the features of its teacher."""
        return any(
            isinstance(node.config, DistillConfig) and node.config.needs_features
            for node in self.nodes.values()
        )

    def model_of(self, name: str) -> ModelConfig | None:
        """The architecture of the model that a node makes; None where that is not one model of the plan's own."""
        config = self.nodes[name].config
        while isinstance(config, AdjustClassBiasConfig):
            config = self.nodes[config.model].config
        models = [model for _, model in models_in(config)]
        is_one = len(models) == 1 and getattr(config, "deploy", None) != "ensemble"
        return models[0] if is_one else None

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
                wanted.extend((*self.nodes[name].reads, *self.nodes[name].siblings))
        nodes = {name: node for name, node in self.nodes.items() if name in keep}
        return replace(self, nodes=nodes, asked=asked)


def order_stages(plan: Plan, locate: Locate | None = None) -> Graph:
    """Expand and order a plan's stages. `locate` turns a path in the plan and a message into a `PlanError`."""
    return _Expansion(plan, locate or _by_path).expand()


def _by_path(path: Path, message: str) -> PlanError:
    return PlanError(f"{'.'.join(str(part) for part in path)}: {message}")


class _Expansion:
    """The state of one expansion: the plan, and the graph made so far."""

    def __init__(self, plan: Plan, locate: Locate) -> None:
        self.plan = plan
        self.locate = locate
        self.graph = Graph(plan.task.identity(), plan.task.test_content())
        self.copies: dict[str, tuple[str, ...]] = {}
        self.outputs: dict[str, int] = {}
        self.same: dict[tuple[str, str], str] = {}
        self.inserted: Counter[str] = Counter()

    def expand(self) -> Graph:
        for name, config in self.plan.stages.items():
            self._check_refs(name, config)
            self._check_model(name, config)
            self._check_transfer(name, config)
            self._check_changes(name, config)
        names = self._ordered_names()
        for name in names:
            self._check_label_space(name, self.plan.stages[name])
            self._check_clusters(name, self.plan.stages[name])
            self._check_top_k(name, self.plan.stages[name])
        for name in names:
            config = self.plan.stages[name]
            self.graph.replicas[name] = self._replicas(name)
            resolved = self._resolve(name, config)
            nodes = self.graph.replicas[name]
            for index, node in enumerate(nodes):
                siblings = tuple(nodes[sibling] for sibling in config.siblings(index))
                self._add(node, name, self._with_index(config, resolved, index), siblings)
        return self.graph

    def _replicas(self, name: str) -> tuple[str, ...]:
        """The nodes of a stage: one, or one per copy."""
        if name not in self.copies:
            count = self.plan.stages[name].copies(self.plan.stages)
            numbered = (name,) if count is None else tuple(f"{name}.{index}" for index in range(count))
            self.copies[name] = numbered
        return self.copies[name]

    def _ordered_names(self) -> list[str]:
        """The stages, each after what it reads; those that make targets as early as that allows.

        So a stage of targets that the user wrote is there before a student would have the same one inserted.
        """
        sorter = TopologicalSorter(
            {
                name: [self._stage_of(ref) for _, ref in stage_refs(config)]
                for name, config in self.plan.stages.items()
            }
        )
        try:
            sorter.prepare()
        except CycleError as error:
            raise self._circle(list(reversed(error.args[1][1:]))) from None
        ranks = {
            name: (STAGES[config.stage].makes != "targets", index, name)
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
            path for path, ref in stage_refs(self.plan.stages[first]) if self._stage_of(ref) == circle[1]
        )
        if len(circle) == 2:
            return self.locate(("stages", first, *path), f"stage `{first}` reads itself; name another stage")
        return self.locate(
            ("stages", first, *path),
            f"stages read one another in a circle: {' → '.join(circle)}; take one of them out",
        )

    def _stage_of(self, ref: str) -> str:
        return ref if ref in self.plan.stages else ref.rpartition(".")[0]

    def _check_refs(self, name: str, config: StageConfig) -> None:
        for path, ref in stage_refs(config):
            place = ("stages", name, *path)
            stage = self._stage_of(ref)
            if stage not in self.plan.stages:
                raise self.locate(
                    place,
                    f"stage `{name}` reads `{ref}`, which the plan does not define"
                    f"{did_you_mean(ref, self.plan.stages)}",
                )
            self._check_replica(place, ref, stage)
            kind = self.plan.stages[stage].stage
            if STAGES[kind].makes != ref.makes:
                makers = ", ".join(f"`{other}`" for other in STAGES if STAGES[other].makes == ref.makes)
                raise self.locate(
                    place, f"`{ref}` makes no {ref.makes}: its kind is `{kind}`; name a stage of {makers}"
                )

    def _check_replica(self, place: Path, ref: str, stage: str) -> None:
        replicas = [node for node in self._replicas(stage) if node != stage]
        if ref != stage and ref not in replicas:
            has = f"has the replicas `{replicas[0]}` to `{replicas[-1]}`" if replicas else "has no replicas"
            raise self.locate(place, f"`{ref}` is not there: `{stage}` {has}")
        follows = place[-1] in self.plan.stages[str(place[1])].follows
        is_single = not isinstance(place[-1], int) and not follows
        if is_single and ref == stage and len(replicas) > 1:
            raise self.locate(
                place,
                f"one stage is read here, but `{stage}` has {len(replicas)} replicas; write `{stage}.0`",
            )

    def _check_model(self, name: str, config: StageConfig) -> None:
        for path, model in models_in(config):
            if missing := missing_source(model):
                raise self.locate(("stages", name, *path), missing)

    def _check_transfer(self, name: str, config: StageConfig) -> None:
        if isinstance(config, AdjustClassBiasConfig):
            self._check_classes(("stages", name, "classes"), config.classes)
        if (transfer := getattr(config, "transfer", None)) is None:
            return
        for key in ("only_classes", "omit_classes"):
            classes = self._check_classes(("stages", name, "transfer", key), getattr(transfer, key) or ())
            if key == "omit_classes" and len(classes) >= self.plan.task.num_classes:
                raise self.locate(("stages", name, "transfer", key), "every class is omitted; leave some")

    def _check_changes(self, name: str, config: StageConfig) -> None:
        for place, message in mistakes_of_changes(config):
            raise self.locate(("stages", name, *place), message)

    def _check_classes(self, place: Path, labels: Iterable[int | str]) -> set[int]:
        """The indices of classes that the plan names."""
        names, indices = self.plan.task.class_names, set()
        for position, label in enumerate(labels):
            try:
                indices.add(class_index(names, label))
            except ValueError as error:
                hint = did_you_mean(label, names) if isinstance(label, str) else ""
                raise self.locate(
                    (*place, position), f"task `{self.plan.task.name}`: {error}{hint}"
                ) from None
        return indices

    def _check_clusters(self, name: str, config: StageConfig) -> None:
        """Clusters fit into the task's classes."""
        if not isinstance(config, ConfusionClustersConfig):
            return
        count, place = self.plan.task.num_classes, ("stages", name)
        for index, cluster in enumerate(config.given or ()):
            classes = self._check_classes((*place, "given", index), cluster)
            if len(classes) < len(cluster):
                raise self.locate((*place, "given", index), "a class is listed twice, by index and by name")
            if len(classes) >= count:
                raise self.locate((*place, "given", index), "a cluster of all classes needs no specialist")
        if config.size is not None and config.size >= count:
            raise self.locate((*place, "size"), f"the task has {count} classes; a cluster holds fewer")
        smallest, largest = config.minimum_size or 2, config.maximum_size or config.size or count
        if config.given is None and config.count * smallest > count and config.mode == "partition":
            raise self.locate(
                (*place, "clusters"),
                f"{config.count} clusters of at least {smallest} of {count} classes are too many",
            )
        if config.given is None and config.count * largest < count:
            key = "size" if config.mode == "overlap" else "maximum_size"
            raise self.locate(
                (*place, key), f"{config.count} clusters of at most {largest} do not hold {count} classes"
            )

    def _check_label_space(self, name: str, config: StageConfig) -> None:
        """Labels fit into the model's outputs; teachers, members of an ensemble and student have the same ones."""
        own = self._num_classes(name)
        if isinstance(config, TrainingConfig) and own < self.plan.task.num_classes:
            place = next((path for path, _ in models_in(config)), ("model",))
            raise self.locate(
                ("stages", name, *place, "num_classes"),
                f"{own} outputs are too few for the task's {self.plan.task.num_classes} classes; leave"
                " `num_classes` out",
            )
        for path, ref in stage_refs(config):
            classes = self._num_classes(self._stage_of(ref))
            if classes != own and path != ("initial",):
                raise self.locate(
                    ("stages", name, *path),
                    f"`{ref}` has {classes} classes and `{name}` {own}; soft targets need the same classes",
                )

    def _check_top_k(self, name: str, config: StageConfig) -> None:
        for phase in phases(config):
            for place, message in mistakes_of_top_k(phase, self._num_classes(name), self.plan.stages):
                raise self.locate(("stages", name, *place), message)

    def _num_classes(self, name: str) -> int:
        """Outputs of the stage's model; of the first model that it reads, when it has none of its own."""
        if name not in self.outputs:
            self.outputs[name] = self._count_classes(self.plan.stages[name])
        return self.outputs[name]

    def _count_classes(self, config: StageConfig) -> int:
        for _, model in models_in(config):
            return model.num_classes or self.plan.task.num_classes
        source = next((ref for path, ref in stage_refs(config) if path != ("initial",)), None)
        return self.plan.task.num_classes if source is None else self._num_classes(self._stage_of(source))

    def _resolve(self, name: str, config: Any) -> Any:
        """The config with references to concrete nodes, and stored targets in place of teachers."""
        resolved = self._with_nodes(config)
        self._check_members(name, resolved)
        if isinstance(resolved, SynthesizeConfig):
            self._check_statistics(name, resolved)
        if isinstance(resolved, DistillConfig):
            return self._with_targets(name, resolved)
        return resolved

    def _with_index(self, config: Any, resolved: Any, index: int) -> Any:
        """The config of one copy, which reads the same copy of the stages that it follows."""
        followed = {key: getattr(config, key) for key in config.follows}
        nodes = {key: type(ref)(self._nodes_of(ref)[index]) for key, ref in followed.items()}
        return resolved.numbered(index).replace(**nodes)

    def _with_nodes(self, config: Any) -> Any:
        """The config, and the configs in it, with the nodes of every stage that they name."""
        changes: dict[str, Any] = {}
        for field_name in type(config).model_fields:
            value = getattr(config, field_name)
            if isinstance(value, tuple) and any(isinstance(item, StageRef) for item in value):
                changes[field_name] = tuple(type(ref)(node) for ref in value for node in self._nodes_of(ref))
            elif isinstance(value, StageRef):
                changes[field_name] = type(value)(self._nodes_of(value)[0])
            elif isinstance(value, CommitteeConfig | TransferConfig):
                changes[field_name] = self._with_nodes(value)
        return config.replace(**changes)

    def _check_statistics(self, name: str, config: SynthesizeConfig) -> None:
        """The statistics are those of the teacher, and of the layers that the objective looks at."""
        statistics = self.graph.nodes[config.statistics].config
        if statistics.teacher != config.teacher:
            raise self.locate(
                ("stages", name, "teacher"),
                f"`{config.statistics}` are statistics of `{statistics.teacher}`, not of `{config.teacher}`; name"
                f" `{statistics.teacher}`",
            )
        if config.objective != "top" and statistics.layers == "top":
            raise self.locate(
                ("stages", name, "objective"),
                f"`objective: {config.objective}` looks at all layers, but `{config.statistics}` recorded the top one;"
                " set its `layers: all`",
            )
        if config.smooth_every is not None and len(self.plan.task.input_shape) != 3:
            raise self.locate(("stages", name, "smooth_every"), "the inputs are no images; leave it out")

    def _check_members(self, name: str, config: Any) -> None:
        """Nobody is counted twice, and everybody has a weight."""
        if committee := getattr(config, "committee", None):
            self._check_distinct(("stages", name, "committee", "specialists"), committee.specialists)
        for key in ("teachers", "targets", "models"):
            members = getattr(config, key, None)
            if not isinstance(members, tuple) or not members:
                continue
            self._check_distinct(("stages", name, key), members)
            place = ("combine", "weights") if key == "teachers" else ("weights",)
            weights = config.combine.weights if key == "teachers" else config.weights
            if isinstance(weights, tuple) and len(weights) != len(members):
                raise self.locate(
                    ("stages", name, *place),
                    f"{len(weights)} weights for {len(members)} {key}: {', '.join(members)}; write one for each",
                )

    def _check_distinct(self, place: Path, members: tuple[str, ...]) -> None:
        seen: dict[str, str] = {}
        counts = Counter(members)
        for member in members:
            same = seen.setdefault(self.graph.nodes[member].fingerprint, member)
            if same == member and counts[member] > 1:
                raise self.locate(place, f"`{member}` is named twice; `weights` make a member count more")
            if same != member:
                raise self.locate(
                    place,
                    f"`{same}` and `{member}` would be equal to the last digit; give one another `seed`",
                )

    def _nodes_of(self, ref: str) -> tuple[str, ...]:
        return self.graph.replicas.get(ref, (ref,))

    def _with_targets(self, name: str, config: DistillConfig) -> DistillConfig:
        if config.targets is not None:
            for targets in self._predictions(config.targets):
                self._check_same_views(name, config, targets)
            return config
        if config.mode == "live":
            return config
        targets = tuple(self._insert_prediction(teacher, config) for teacher in config.teachers)
        is_one = len(targets) == 1 and config.committee is None
        source = targets[0] if is_one else self._insert_combination(name, targets, config)
        return config.replace(
            teachers=(), targets=TargetsRef(source), combine=CombineConfig(), committee=None
        )

    def _predictions(self, targets: str) -> Iterator[Node]:
        """The stored predictions that targets are made of, each once."""
        wanted, seen = [targets], {targets}
        while wanted:
            node = self.graph.nodes[wanted.pop()]
            if isinstance(node.config, CombineTargetsConfig):
                new = [member for member in reversed(node.config.targets) if member not in seen]
                seen.update(new)
                wanted += new
            else:
                yield node

    def _check_same_views(self, name: str, config: DistillConfig, targets: Node) -> None:
        stored = targets.config.replace(transfer=targets.config.transfer.replace(labelled=True))
        config = config.replace(transfer=config.transfer.replace(labelled=True))
        if set(config.transfer.synthesized or ()) != set(stored.transfer.synthesized or ()):
            raise self.locate(
                ("stages", name, "transfer"),
                f"the student and its targets `{targets.name}` must be about the same samples; write the same"
                " `synthesized` in the `transfer` of both",
            )
        keys = ["views", "view_seed", "augment"]
        if any(isinstance(step, MixupConfig) for step in config.augment):
            keys.append("transfer")  # mixup's partners are drawn from the transfer set
        for key in keys:
            if key == "view_seed" and not config.views and not stored.views:
                continue
            if getattr(config, key) != getattr(stored, key):
                raise self.locate(
                    ("stages", name, key),
                    f"the student must see the pixels that the teacher saw, but `{key}` differs from that of the"
                    f" targets `{targets.name}`; write the same `{key}` in both",
                )

    def _insert_prediction(self, teacher: str, student: DistillConfig) -> str:
        config = PredictTargetsConfig(
            stage="predict_targets",
            teacher=ModelRef(teacher),
            transfer=student.transfer.replace(labelled=True),
            augment=student.augment,
            views=student.views,
            view_seed=student.view_seed,
            resources=self.graph.nodes[teacher].config.resources.replace(workers=1),
        )
        return self._insert(f"{teacher}.targets", config)

    def _insert_combination(self, name: str, targets: tuple[str, ...], student: DistillConfig) -> str:
        combine = student.combine
        config = CombineTargetsConfig(
            stage="combine_targets",
            targets=tuple(TargetsRef(target) for target in targets),
            rule=combine.rule,
            weights=combine.weights,
            scale=combine.scale,
            committee=student.committee,
        )
        members = [
            *self.plan_teachers(targets),
            *(student.committee.specialists if student.committee else ()),
        ]
        stages = dict.fromkeys(self.graph.nodes[member].stage for member in members)
        return self._insert(f"{'+'.join(stages)}.targets", config)

    def plan_teachers(self, targets: tuple[str, ...]) -> list[str]:
        """The teachers whose predictions `targets` are."""
        return [self.graph.nodes[target].config.teacher for target in targets]

    def _insert(self, name: str, config: StageConfig) -> str:
        """Add a stage, or find the one that already is the same; a second of the same name gets a number."""
        probe = self._node(name, name, config, inserted=True)
        if (same := self.same.get((probe.kind, probe.fingerprint))) is not None:
            return same
        self.inserted[name] += 1
        if self.inserted[name] > 1:
            name = f"{name}.{self.inserted[name]}"
        self._put(replace(probe, name=name, stage=name))
        return name

    def _add(self, name: str, stage: str, config: StageConfig, siblings: tuple[str, ...]) -> None:
        node = self._node(name, stage, config, inserted=False)
        self._put(replace(node, siblings=siblings))

    def _put(self, node: Node) -> None:
        self.graph.nodes[node.name] = node
        self.same.setdefault((node.kind, node.fingerprint), node.name)

    def _node(self, name: str, stage: str, config: Any, *, inserted: bool) -> Node:
        reads = tuple(dict.fromkeys(str(ref) for _, ref in stage_refs(config)))
        fingerprints = {ref: self.graph.nodes[ref].fingerprint for ref in reads}
        task = self.graph.task | ({"test": self.graph.test} if config.learns_from_test else {})
        identity = stage_identity(config.stage, config, task, fingerprints)
        return Node(name, stage, config.stage, config, identity, fingerprint(identity), reads, inserted)
