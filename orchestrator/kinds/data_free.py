"""The stages of distillation without data (Lopes, Fenu, Starner 2017, arXiv 1710.07535).

Whoever has the data records statistics of the teacher's activations; whoever has only these and the teacher's weights
reconstructs inputs from them and distils on those: `transfer: {synthesized: <stage>}`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from raydistill.kinds.stage_bases import BatchSize, TrainingConfig
from raydistill.kinds.training import AdamWConfig, OptimizerOptions, TransferConfig
from raydistill.plan.config import (
    Integer,
    ModelRef,
    NonNegative,
    Number,
    Positive,
    Seed,
    StageRef,
    StatisticsRef,
    Temperature,
)
from raydistill.plan.config_errors import located_error
from raydistill.plan.model import ModelConfig
from raydistill.plan.stage import StageConfig

if TYPE_CHECKING:
    from raydistill.plan.order import Site

Count = Annotated[Integer, Field(ge=1, le=1_000_000)]


class RecordStatisticsConfig(StageConfig):
    """Record, per class, the means and covariances of a teacher's activations on its own data: what data-free
    distillation needs besides the teacher's weights (Lopes et al. 2017, arXiv 1710.07535).

    `layers: top` records logits / `temperature`; `all` also the features that end in `_pre`, before each ReLU; a list
    names features. A layer of more than `largest_covariance` units keeps standard deviations alone. The files hold no
    sample, but a class mean of a first layer can be seen as a mean image: think before you hand them on.
    """

    word = "record_statistics"
    implementation = "raydistill.stages.record_statistics:record_statistics"
    makes = "statistics"
    shares_work = True
    workers_come_and_go = True

    teacher: ModelRef
    """Whose activations are recorded."""
    layers: Literal["top", "all"] | tuple[str, ...] = "top"
    """Which ones: logits, all before a ReLU, or features by name."""
    temperature: Temperature = 8.0
    """Divides the logits."""
    largest_covariance: Count = 2048
    """Units of the largest layer whose covariances are kept."""
    transfer: TransferConfig = TransferConfig()
    """Which samples are looked at; the whole training split when left out."""
    batch_size: BatchSize = 500
    """Samples at a time."""

    @model_validator(mode="after")
    def _classes_are_known(self) -> "RecordStatisticsConfig":
        if not self.transfer.labelled:
            raise located_error("statistics are per class; leave `labelled: false` out", "transfer")
        return self


class SynthesizeConfig(StageConfig):
    """Reconstruct inputs from a teacher's weights and the `statistics` of its activations, without any data
    (Lopes et al. 2017, arXiv 1710.07535). `transfer: {synthesized: <this stage>}` then trains on them.

    Per class and batch, activations r = μ + L ε (ε normal, L Lᵀ the class's covariance) are drawn, and Adam changes
    random inputs until the teacher has them: Σ_l w_l · mean((relu(r_l) - relu(h_l(x)))²). `objective`: `top` looks at
    logits / temperature, `all` at every recorded layer, `dropout` at every layer of a network thinned by masks that are
    drawn anew for each batch, kept units not rescaled. `layer_weights: inverse_size` is w_l = 1 / units as released;
    `equal` is 1. The ReLU leaves negative logits unmatched.

    Inputs start as N(`initial_mean`, `initial_std`²) in the task's units, pixels from 0 to 1: for digits the release
    has 0.15 and 0.1; left out, they are the teacher's input normalisation. `steps: 0` leaves this noise as it is, a
    baseline. `smooth_every` blurs by 3x3 and clips to [0, 1] every so many steps. Each of `shards` runs as a stage of
    its own; (class, batch, seed) gives the same images in whichever. The task's data is never read.
    """

    word = "synthesize"
    implementation = "raydistill.stages.synthesize:synthesize"
    makes = "samples"

    teacher: ModelRef
    """Whose inputs are reconstructed."""
    statistics: StatisticsRef
    """The stage that recorded its activations."""
    objective: Literal["top", "all", "dropout"] = "top"
    """Which activations the inputs shall have."""
    layer_weights: Literal["inverse_size", "equal"] = "inverse_size"
    """How much each layer counts."""
    batches: Count = Field(100, description="per class")
    batch_size: BatchSize = 64
    """Samples that are made together."""
    steps: Annotated[Integer, Field(ge=0, le=1_000_000)] = 1000
    """Steps of Adam per batch."""
    learning_rate: Positive = 0.07
    """Of Adam."""
    initial_mean: Number | None = None
    """Of the noise that inputs start as; the teacher's own when left out."""
    initial_std: Positive | None = None
    """Of the noise that inputs start as; the teacher's own when left out."""
    smooth_every: Count | None = None
    """Steps between two blurs; none when left out."""
    seed: Seed = 0
    """Chooses noise and activations."""
    shards: Annotated[Integer, Field(ge=1, le=1000)] = 1
    """Stages that share the work."""
    shard: Annotated[Integer, Field(ge=0)] | None = Field(None, description="the graph writes it")

    def settled(self, site: "Site") -> Self:
        """The statistics are those of the teacher, and of the layers that the objective looks at."""
        statistics = site.node(self.statistics).config
        if getattr(statistics, "teacher", self.teacher) != self.teacher:
            raise site.error(
                f"`{self.statistics}` are statistics of `{statistics.teacher}`, not of `{self.teacher}`; name"
                f" `{statistics.teacher}`",
                "teacher",
            )
        if self.objective != "top" and getattr(statistics, "layers", None) == "top":
            raise site.error(
                f"`objective: {self.objective}` looks at all layers, but `{self.statistics}` recorded the top one;"
                " set its `layers: all`",
                "objective",
            )
        if self.smooth_every is not None and len(site.task.input_shape) != 3:
            raise site.error("the inputs are no images; leave it out", "smooth_every")
        return self

    def num_nodes(self, stages: Mapping[str, StageConfig]) -> int | None:
        """One per shard."""
        return self.shards if self.shards > 1 else None

    def for_node(self, index: int) -> Self:
        """All shards have the same seed."""
        return self.replace(shard=index)


class DistillWithGeneratorConfig(TrainingConfig):
    """DAFL: a generator learns to please the teacher while a student learns from what it draws (Chen et al. 2019,
    arXiv 1904.01186). The task's data teaches nothing, it judges: validation after every epoch, test at the end.

    x = G(z), v and f are the teacher's logits and `feature` of x, u = softmax(v), ū its mean over the batch. As in the
    release f is what the convolutions give to the linear layers: the 120 units before LeNet-5's hidden layer, the
    embedding of networks that have one linear layer. loss of G = `one_hot_weight` · CE(v, argmax v) + `entropy_weight`
    · Σ ū log10 ū - `activation_weight` · mean |f|; loss of the student = KL(u ‖ softmax(student(x))), which G does not
    see. Each has an optimizer of its own: Adam with `generator_learning_rate` for G, `optimizer` and `schedule` for the
    student.

    Settings: defaults are the release's for MNIST; for CIFAR-10: 2000 epochs, batches of 1024, latent 1000, weights
    0.05, 5 and 0.01, rates 0.02 for G and SGD 0.1 for the student. Needs images whose sides are multiples of 4.
    Published: LeNet-5 to its half 98.20 % (data: 98.91), for CIFAR-10 ResNet-34 to ResNet-18 92.22 % (data: 94.34), at
    the epoch that was best on test; here it is the last.
    Pitfalls: the generator may settle on few classes; the task's data judges and teaches nothing.
    Releases: chooses its epoch on the test split.
    """

    word = "distill_with_generator"
    implementation = "raydistill.stages.distill_with_generator:distill_with_generator"
    has_teacher = True

    teacher: ModelRef
    """Whom the generator pleases and the student matches."""
    student: ModelConfig
    """The model that is trained."""
    epochs: Count = 200
    """Validation after each, of `iterations` steps."""
    iterations: Count = Field(120, description="per epoch")
    batch_size: BatchSize = 512
    """Samples that are drawn per step."""
    optimizer: OptimizerOptions = AdamWConfig(learning_rate=2e-3)
    """The student's."""
    generator_learning_rate: Positive = 0.2
    """Of the generator's Adam."""
    latent: Count = 100
    """Numbers that a sample is drawn from."""
    feature: str | None = None
    """Of the teacher, whose activations count; `flat` if it names that, else `embedding`, when left out."""
    one_hot_weight: NonNegative = 1.0
    """For samples that the teacher is sure of."""
    entropy_weight: NonNegative = 5.0
    """For batches of all classes alike."""
    activation_weight: NonNegative = 0.1
    """For samples that excite the teacher's feature."""

    @model_validator(mode="after")
    def _the_generator_makes_the_samples(self) -> "DistillWithGeneratorConfig":
        for key in ("transfer", "augment"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise located_error("the generator makes all samples; leave it out", key)
        if self.accumulate is not None:
            raise located_error(
                "the generator learns from whole batches, in which all classes come alike; raise `batch_size`",
                "accumulate",
            )
        return self

    @property
    def taught_by(self) -> tuple[StageRef, ...]:
        return (self.teacher,)

    @property
    def sees_transfer(self) -> bool:
        """The generator makes what it sees."""
        return False

    def role(self, *, teaches: bool, has_student: bool) -> str:
        return "student"
