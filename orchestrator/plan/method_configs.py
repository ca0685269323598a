"""The table of distillation methods: what each can be told, and where it is implemented, one file each."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.plan.config import Boolean, ChosenBy, NonNegative, Number
from orchestrator.plan.feature_method_configs import FspConfig, HintsConfig
from orchestrator.plan.method_options import MethodOptions
from orchestrator.plan.mistakes import located_error


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
