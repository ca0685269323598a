"""What a distillation method can be told. The implementations are in `methods/`, one file each."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.plan.config import Boolean, ChosenBy, Config, Integer, NonNegative, Number
from orchestrator.plan.mistakes import located_error


class RampConfig(Config):
    """A weight that changes: from `start` to `end` times the method's weight within `epochs`, and `end` from then on.

    `linear`; `cosine`, half a wave; or `exponential`, exp(-5 (1 - t)²), the ramp-up of arXiv 1610.02242.
    """

    shape: Literal["linear", "cosine", "exponential"] = "linear"
    start: NonNegative = 0.0
    end: NonNegative = 1.0
    epochs: Annotated[Integer, Field(ge=1)]


class MethodOptions(Config):
    """What every method can be told: the `weight` of all of its losses, and a `ramp` that changes it over epochs."""

    method: str
    weight: NonNegative = 1.0
    ramp: RampConfig | None = None

    needs_features: ClassVar[bool] = False
    """Whether the losses look at the teacher's features, which are never stored: `mode: live`, one teacher."""

    @property
    def needs_labels(self) -> bool:
        """Whether the losses look at the true labels."""
        return False


class HintonConfig(MethodOptions):
    """Soft targets: match the teacher's softened distribution (Hinton et al. 2015, arXiv 1503.02531).

    loss = soft_weight · T² · KL(softmax(v/T) ‖ softmax(z/T)) + hard_weight · CE(y, softmax(z)), with student
    logits z, teacher logits v, labels y. Defaults are those of the common CIFAR-100 benchmark (RepDistiller:
    T = 4, weights 0.9 and 0.1); the paper found a considerably lower weight on the hard term best.
    """

    method: Literal["hinton"] = "hinton"
    temperature: Annotated[Number, Field(gt=0, le=1e6)] = 4.0
    soft_weight: NonNegative = 0.9
    hard_weight: NonNegative = 0.1
    scale_by_temperature_squared: Boolean = True

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "HintonConfig":
        if self.soft_weight == self.hard_weight == 0:
            raise located_error(
                "`soft_weight` and `hard_weight` are both 0: nothing to learn from; raise one", "soft_weight"
            )
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the true labels."""
        return self.hard_weight > 0


class HintsConfig(MethodOptions):
    """Hints: a regressor on a student's feature matches the teacher's (FitNets, Romero et al. 2015, arXiv 1412.6550).

    loss = weight · ½ ‖u_h(x) - r(v_g(x))‖², summed over the feature and averaged over the batch (`reduction: sum`, the
    paper's eq. 3), or the mean of squares (`mean`, what toolboxes call FitNet, with a weight of 100). By default the
    features are those of the middle stages. The regressor is a convolution and ReLU, or linear for flat features, as
    the shapes ask for. The paper's two phases are two stages: hints alone, then `initial: <that stage>` with
    `{method: hinton, ramp: {start: 4, end: 1, ...}}`; layers that no loss reaches are left alone.
    """

    method: Literal["hints"]
    student_feature: str | None = Field(None, description="the middle stage when left out")
    teacher_feature: str | None = Field(None, description="the middle stage when left out")
    reduction: Literal["sum", "mean"] = "sum"

    needs_features: ClassVar[bool] = True


class FspConfig(MethodOptions):
    """Flow between layers (FSP, Yim et al., CVPR 2017): Gram matrices of two features match the teacher's.

    loss = weight · mean over the batch of Σ_k ‖G_k^T - G_k^S‖² (`reduction: mean`: divided by the size of G), with
    G = Σ over places of F1 F2ᵀ / (h · w); the larger of two maps is pooled to the smaller grid (`max`, as in the paper,
    or `average`). Channels must be equal. Pairs are (input, output) of sections, by default each stage's output with
    that of the stage before; the paper trains with this loss alone, then on labels with `initial`.
    """

    method: Literal["fsp"]
    student_pairs: tuple[tuple[str, str], ...] | None = Field(
        None, description="(input, output) of each section"
    )
    teacher_pairs: tuple[tuple[str, str], ...] | None = Field(
        None, description="as the student's when left out"
    )
    pool: Literal["max", "average"] = "max"
    reduction: Literal["sum", "mean"] = "sum"

    needs_features: ClassVar[bool] = True


MethodConfig = Annotated[HintonConfig | HintsConfig | FspConfig, ChosenBy("method", "method")]


@dataclass(frozen=True)
class MethodKind:
    """A row of the table of methods: what it can be told, and its implementation, built as
    `implementation(config, setting)` with a `training.method.Setting`."""

    config: type[MethodOptions]
    implementation: str


METHODS: dict[str, MethodKind] = {
    "hinton": MethodKind(HintonConfig, "orchestrator.methods.hinton:Hinton"),
    "hints": MethodKind(HintsConfig, "orchestrator.methods.hints:Hints"),
    "fsp": MethodKind(FspConfig, "orchestrator.methods.fsp:Fsp"),
}
