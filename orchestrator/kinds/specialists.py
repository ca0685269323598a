"""The stages that make class-cluster specialists (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 5)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raydistill.errors import PlanError
from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.kinds.stage_bases import BatchSize, TrainingConfig
from raydistill.kinds.training import TransferConfig
from raydistill.plan.config import (
    FINE_TEMPERATURE,
    ClustersRef,
    Integer,
    ModelRef,
    NonNegative,
    Number,
    Seed,
    StageRef,
    Temperature,
)
from raydistill.plan.config_errors import located_error
from raydistill.plan.model import ModelConfig
from raydistill.plan.stage import StageConfig
from raydistill.plan.written import yaml_values
from raydistill.tasks.task import Task

if TYPE_CHECKING:
    from raydistill.plan.order import Graph, Site


class ConfusionClustersConfig(StageConfig):
    """Group the classes that a generalist confuses, for one specialist per group (arXiv 1503.02531, section 5.2).

    K-means on the columns of the correlation (or covariance) matrix of its predictions, before centring and without the
    diagonal, on the validation split, or on `views` augmented versions of the transfer set. `partition`: every class is
    in one cluster of `minimum_size` to `maximum_size` classes, half to twice the mean if left out; `overlap`: equal
    parts of all classes, each filled up to `size` with the classes that it is most confused with. Clusters of your own
    are written out as `given`: lists of classes by index or name (in quotes where it is a number), or the name of a
    YAML or JSON file with such lists.
    """

    word = "confusion_clusters"
    implementation = "raydistill.stages.confusion_clusters:confusion_clusters"
    makes = "clusters"
    shares_work = True
    workers_come_and_go = True

    generalist: ModelRef | None = None
    """Whose confusions count."""
    clusters: Annotated[Integer, Field(ge=1, le=100_000)] | None = None
    """How many clusters are found."""
    given: tuple[tuple[Integer | str, ...], ...] | None = Field(None, min_length=1)
    """Clusters of your own, in place of found ones."""
    mode: Literal["partition", "overlap"] = "partition"
    """Every class in one cluster, or overlapping clusters of one size."""
    size: Annotated[Integer, Field(ge=2)] | None = None
    """Classes in each overlapping cluster."""
    minimum_size: Annotated[Integer, Field(ge=2)] | None = None
    """The fewest classes in a cluster."""
    maximum_size: Annotated[Integer, Field(ge=2)] | None = None
    """The most classes in a cluster."""
    matrix: Literal["correlation", "covariance"] = "correlation"
    """What of the predictions is compared."""
    temperature: Temperature = 1.0
    """Divides the logits before the predictions."""
    split: Literal["validation", "train"] = "validation"
    """Whose samples are predicted."""
    transfer: TransferConfig = TransferConfig()
    """Which of the training split's samples, with `split: train`."""
    augment: tuple[AugmentationOptions, ...] = ()
    """Random changes of the inputs, one after another."""
    views: Annotated[Integer, Field(ge=0, le=10_000)] = 0
    """Augmented versions of each sample; 0 is the clean input."""
    view_seed: Seed = 0
    """Chooses them."""
    restarts: Annotated[Integer, Field(ge=1, le=1000)] = 10
    """Runs of k-means, of which the best counts."""
    seed: Seed = 0
    """Of k-means."""
    batch_size: BatchSize = 500
    """Samples at a time."""

    @property
    def count(self) -> int:
        """How many clusters, and with them specialists, there are."""
        return len(self.given) if self.given is not None else self.clusters or 0

    @field_validator("given", mode="before")
    @classmethod
    def _read_file(cls, given: Any) -> Any:
        return _clusters_in_file(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _found_or_given(self) -> "ConfusionClustersConfig":
        if self.given is not None and (self.generalist is not None or self.clusters is not None):
            raise located_error("clusters that are `given` need neither `generalist` nor `clusters`", "given")
        if self.given is None and (self.generalist is None or self.clusters is None):
            raise located_error(
                "name the `generalist` whose confusions count, and how many `clusters`; or write them as `given`"
            )
        if (self.mode == "overlap") != (self.size is not None):
            raise located_error(
                "`size` says how many classes each overlapping cluster has: `mode: overlap`", "size"
            )
        if (self.maximum_size or self.minimum_size or 0) < (self.minimum_size or 0):
            raise located_error("`maximum_size` is below `minimum_size`", "maximum_size")
        return self

    @model_validator(mode="after")
    def _views_of_the_training_split(self) -> "ConfusionClustersConfig":
        if bool(self.views) != bool(self.augment):
            raise located_error("`views` and `augment` go together: give both or neither", "views")
        if self.views and self.split == "validation":
            raise located_error("views are of the training split; write `split: train`", "views")
        return self

    @model_validator(mode="after")
    def _given_clusters_are_some(self) -> "ConfusionClustersConfig":
        for index, cluster in enumerate(self.given or ()):
            if len(cluster) < 2:
                raise located_error(
                    "a cluster of one class leaves nothing to tell apart; add one", "given", index
                )
            if len(set(cluster)) < len(cluster):
                raise located_error("a class is listed twice", "given", index)
        return self

    def check(self, site: "Site") -> None:
        """Clusters fit into the task's classes."""
        super().check(site)
        count = site.task.num_classes
        for index, cluster in enumerate(self.given or ()):
            classes = site.check_classes(cluster, "given", index)
            if len(classes) < len(cluster):
                raise site.error("a class is listed twice, by index and by name", "given", index)
            if len(classes) >= count:
                raise site.error("a cluster of all classes needs no specialist", "given", index)
        if self.size is not None and self.size >= count:
            raise site.error(f"the task has {count} classes; a cluster holds fewer", "size")
        if self.given is not None:
            return
        smallest, largest = self.minimum_size or 2, self.maximum_size or self.size or count
        if self.count * smallest > count and self.mode == "partition":
            raise site.error(
                f"{self.count} clusters of at least {smallest} of {count} classes are too many", "clusters"
            )
        if self.count * largest < count:
            key = "size" if self.mode == "overlap" else "maximum_size"
            raise site.error(f"{self.count} clusters of at most {largest} do not hold {count} classes", key)

    def role(self, *, teaches: bool, has_student: bool) -> str:
        return "clusters"


def _clusters_in_file(name: str) -> Any:
    try:
        return yaml_values(Path(name).expanduser().read_text(encoding="utf-8"), f"`{name}`")
    except OSError as error:
        raise located_error(
            f"`{name}` cannot be read: {error.strerror}; a file with lists of classes"
        ) from None
    except (PlanError, UnicodeDecodeError):
        raise located_error(f"`{name}` is neither YAML nor JSON; it should hold lists of classes") from None


class TrainSpecialistsConfig(TrainingConfig):
    """Train one specialist per cluster of classes, each a stage of its own (arXiv 1503.02531, sections 5.1 to 5.5).

    A specialist starts as the generalist. Of what it sees, `special_fraction` are its own classes, the rest is drawn
    from all other classes; the prior that this changes is put right in the stored model. `head: dustbin`: its classes
    and one output for all others. `head: full`: all classes, hard labels on its own, and against forgetting the
    generalist's soft targets at `temperature` with `soft_weight` on the others (`soft_on: all`: on all samples).
    """

    word = "train_specialists"
    implementation = "raydistill.stages.train_specialists:train_specialists"
    makes = "specialist"
    judged_samples = "raydistill.stages.train_specialists:judged_samples"

    generalist: ModelRef
    """Whose weights a specialist starts with."""
    clusters: ClustersRef
    """The stage that made the clusters."""
    cluster: Annotated[Integer, Field(ge=0)] | None = Field(None, description="the graph writes it")
    head: Literal["dustbin", "full"] = "dustbin"
    """Its own classes and one output for the rest, or all classes."""
    special_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """Which part of a batch is of its own classes."""
    initial_dustbin: Literal["mean", "random"] = "mean"
    """How the output for the rest starts: as the mean of theirs, or at random."""
    temperature: Temperature = 2.0
    """Divides the logits of specialist and generalist, with `head: full`."""
    soft_weight: NonNegative = 1.0
    """Of the loss against the generalist, with `head: full`."""
    soft_on: Literal["others", "all"] = "others"
    """Which samples that loss looks at."""

    @model_validator(mode="after")
    def _one_per_cluster(self) -> "TrainSpecialistsConfig":
        if self.replicas != 1:
            raise located_error("there is one specialist per cluster; leave `replicas` out", "replicas")
        if self.initial is not None:
            raise located_error("a specialist starts as its generalist; leave `initial` out", "initial")
        if not self.transfer.labelled:
            raise located_error("specialists learn from labels; leave `labelled: false` out", "transfer")
        for index, step in enumerate(self.augment):
            if step.mixes_samples:
                raise located_error(
                    f"{step.name} would mix special and other samples; leave it out", "augment", index
                )
        return self

    @property
    def revision(self) -> int:
        """2: the prior is put right for the fraction that was drawn, where half and half is never rounded; and
        divergences at temperatures above 100 are computed in float64."""
        is_as_before = self.special_fraction == 0.5 and self.temperature <= FINE_TEMPERATURE
        return 1 if is_as_before else 2

    @property
    def taught_by(self) -> tuple[StageRef, ...]:
        return (self.generalist,)

    @property
    def sees_transfer(self) -> bool:
        """Its batches are drawn, its own classes more often."""
        return False

    def trained_models(self, graph: "Graph", task: Task) -> list[tuple[ModelConfig, int]]:
        """How many classes a specialist will have is known later; that it follows what its head says, now."""
        model = graph.model_of(self.generalist)
        return [] if model is None else [(model, task.num_classes + (self.head == "dustbin"))]

    def role(self, *, teaches: bool, has_student: bool) -> str:
        return "specialist"

    def num_nodes(self, stages: Mapping[str, StageConfig]) -> int | None:
        """One per cluster, numbered even if there is one."""
        clusters = stages.get(self.clusters)
        return clusters.count if isinstance(clusters, ConfusionClustersConfig) else 1

    def for_node(self, index: int) -> Self:
        """All specialists have the same seed."""
        return self.replace(cluster=index)
