"""What every kind of stage is: a frozen config that says what the graph, the run and the report need to know of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from raydistill.plan.config import StageRef, stage_refs
from raydistill.plan.config_errors import located_error
from raydistill.plan.kind import Choice, Kind
from raydistill.plan.model import ModelConfig, models_in
from raydistill.plan.resources import ResourcesConfig

if TYPE_CHECKING:
    from raydistill.plan.order import Site


class StageConfig(Kind):
    """What every stage has. `implementation` is called as `function(config, context)` and returns its metrics."""

    chosen_by = Choice("stage", "stage kind", "stages", "raydistill.kinds.stages:STAGES")

    version: ClassVar[int] = 1
    """Raised by hand when the code changes what the stage produces: it is part of every fingerprint."""
    makes: ClassVar[str] = "result"
    """What readers of the stage find in its folder: the `makes` of the `StageRef` that they name it with."""
    not_identity: ClassVar[frozenset[str]] = frozenset({"resources", "replicas"})
    """Keys that do not decide the result."""
    zipped: ClassVar[frozenset[str]] = frozenset()
    """Keys under which each of several copies reads the copy of its number."""
    other_classes: ClassVar[frozenset[str]] = frozenset()
    """Keys under which a model may have other classes than this stage."""
    shares_work: ClassVar[bool] = False
    """Whether several workers divide the stage among them. Others would each do all of it, and write the same files."""
    workers_come_and_go: ClassVar[bool] = False
    """Whether its workers divide it by claiming pieces (`runs/claims.py`): each works on its own, as many take part as
    there is room for, and one that dies or comes late changes nothing. Else they are one group, under Ray Train."""
    learns_by: ClassVar[str] = ""
    """What a report says that its models learn by; the kind's own word when left out."""
    learns_unlabelled: ClassVar[bool] = False
    """Whether it takes samples without a label too."""
    surveyed_by: ClassVar[str] = ""
    """`package.module:function` of (config, context): looks, before the first stage starts, at what this one will read
    and returns (level, text) pairs; raises a `StageError` for what cannot be used."""
    has_teacher: ClassVar[bool] = False
    """Whether its model answers in the classes of a teacher, with which it can be compared."""
    makes_students: ClassVar[bool] = False
    """Whether a plan with such a stage is about students: its other models are teachers and baselines."""

    makes_program: ClassVar[bool] = False
    """Whether its model is a program, whose parameters and multiply-adds are not counted."""

    stage: str = ""
    """Which kind; its options stand beside it."""
    resources: ResourcesConfig = ResourcesConfig()
    """What each worker of the stage gets; no part of its identity."""

    @model_validator(mode="after")
    def _one_worker_where_work_is_not_shared(self) -> Self:
        if self.resources.workers > 1 and not self.shares_work:
            raise located_error(
                "workers share trainings and predictions, and this stage is neither: leave `workers` out; `cpus` and"
                " `gpus` make it faster",
                "resources",
                "workers",
            )
        return self

    @property
    def learns_from_test(self) -> bool:
        """Whether the test split decides the result, not only the judgement of it."""
        return False

    @property
    def judged_on(self) -> tuple[str, ...]:
        """The splits of which the stage reports how good its model is."""
        return ()

    @property
    def existing_model(self) -> ModelConfig | None:
        """A model that it takes as it is, and does not train."""
        return None

    @property
    def compares_features(self) -> bool:
        """Whether it looks at features, of a teacher or of its own: they are looked for when the plan is read."""
        return False

    @property
    def taught_by(self) -> tuple[StageRef, ...]:
        """The stages that it learns from: models, or their targets."""
        return ()

    def num_nodes(self, stages: Mapping[str, "StageConfig"]) -> int | None:
        """How many numbered nodes of the graph this is; None for a single one without a number.

        Not everything that it reads need be among the plan's `stages`.
        """
        return None

    def for_node(self, index: int) -> Self:
        """The config of one copy, counted from 0."""
        return self

    def peers_of(self, index: int) -> tuple[int, ...]:
        """The copies that one copy looks at while they all run; it waits for none of them."""
        return ()

    def check(self, site: "Site") -> None:
        """Whom it reads has the same classes."""
        super().check(site)
        own = site.num_classes()
        for path, ref in stage_refs(self):
            if path[0] not in self.other_classes and (classes := site.num_classes(ref)) != own:
                raise site.error(
                    f"`{ref}` has {classes} classes and `{site.name}` {own}; soft targets need the same classes",
                    *path,
                )

    def settled(self, site: "Site") -> Self:
        """The config as its nodes have it, once all that it reads is in the graph and named by nodes: what depends on
        these is checked, and what it needs besides is inserted."""
        return self

    @property
    def stands_for(self) -> StageRef | None:
        """The stage whose model this one passes on, with little changes: it plays its part."""
        return None

    def made_model(self) -> ModelConfig | None:
        """The architecture of the model that it makes; None where that is not one model of the plan's own."""
        models = [model for _, model in models_in(self)]
        return models[0] if len(models) == 1 else None

    @property
    def begins_as(self) -> StageRef | None:
        """The stage with whose weights its model begins; None where it begins by itself."""
        return None

    @property
    def trains_classifier(self) -> bool:
        """Whether anything that it learns from reaches the classifier of its model."""
        return True

    def role(self, *, teaches: bool, has_student: bool) -> str:
        """The part its node plays in a report; `teaches`: somebody learns from it."""
        return "teacher" if teaches else "baseline" if has_student else "model"


def stage_of(values: Mapping[str, Any], *others: type[StageConfig]) -> StageConfig:
    """The config of a stage from its JSON values; `others` are kinds that no plan can name."""
    unnamed = {kind.word: kind for kind in others}
    kind = unnamed.get(values["stage"]) or StageConfig.find(values["stage"])
    return kind.model_validate(values)
