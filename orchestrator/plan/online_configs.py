"""The stages in which models teach one another while they learn, without a teacher that was there before."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.plan.config import Boolean, Integer, NonNegative, Number
from orchestrator.plan.mistakes import located_error
from orchestrator.plan.model_config import ModelConfig
from orchestrator.plan.stage_bases import TrainingConfig

Temperature = Annotated[Number, Field(gt=0, le=1e6)]


class OnlineConfig(TrainingConfig):
    """What the stages have in common that train several members at once, of which one is deployed.

    The lines of metrics that are written during training, and early stopping, are about the members' ensemble.
    """

    @model_validator(mode="after")
    def _labels_are_there(self) -> "OnlineConfig":
        if not self.transfer.labelled:
            raise located_error(
                "who has no teacher learns from labels; leave `labelled: false` out", "transfer"
            )
        return self


class TrainBranchesConfig(OnlineConfig):
    """Train a network with several branches that their gated ensemble teaches (ONE, Lan et al. 2018, arXiv 1806.04606).

    The last stage and the head of `model` stand `branches` times on one trunk; branch i has logits z_i, and a gate g
    (pool, linear, batch norm, ReLU, softmax) sees what the trunk gives: z_e = Σ g_i z_i.
    loss = Σ CE(z_i) + CE(z_e) + weight · ramp · Σ T² KL(softmax(z_e/T) ‖ softmax(z_i/T)), ramp = exp(-5 (1 - t)²)
    over `ramp_epochs` (0: none; the paper has none, its code 80). Without `detach_teacher` the last term trains the
    ensemble too, as in OKDDip's version. `deploy`: the branch that is best on validation, the first one, or the
    `ensemble`, a model `branched`. Published, CIFAR-100: ResNet-110 25.33 → 21.62 % errors, without the last term
    24.73.
    """

    stage: Literal["train_branches"]
    model: ModelConfig
    branches: Annotated[Integer, Field(ge=2, le=100)] = 3
    temperature: Temperature = 3.0
    weight: NonNegative = 1.0
    ramp_epochs: Annotated[Integer, Field(ge=0)] = 80
    detach_teacher: Boolean = True
    deploy: Literal["best", "first", "ensemble"] = "best"

    @model_validator(mode="after")
    def _is_one_of_ours(self) -> "TrainBranchesConfig":
        if ":" in self.model.name or self.model.name == "branched":
            raise located_error(
                f"only a plain network of ours can branch, such as `resnet20`; `{self.model.name}` is none",
                "model",
            )
        return self


class TrainPeersConfig(OnlineConfig):
    """Train several models that teach one another (deep mutual learning, Zhang et al. 2018, arXiv 1706.00384).

    loss of peer i = CE(z_i) + weight / (K - 1) · Σ_j T² KL(softmax(z_j/T) ‖ softmax(z_i/T)) over the other peers j,
    whose logits are constants there: all K step at once by the sum of the losses, as each would by its own (`clip_norm`
    alone looks at all gradients together). `deploy` says which one is kept: the best on validation, or by its place in
    `peers`. Published, CIFAR-100: two ResNet-32 68.99 → 71.19 and 70.75 %, with WRN-28-10 as its peer 70.73 %.
    """

    stage: Literal["train_peers"]
    peers: tuple[ModelConfig, ...] = Field(min_length=1)
    temperature: Temperature = 1.0
    weight: NonNegative = 1.0
    deploy: Literal["best"] | Annotated[Integer, Field(ge=0)] = "best"

    @model_validator(mode="after")
    def _deploys_a_peer(self) -> "TrainPeersConfig":
        if isinstance(self.deploy, int) and self.deploy >= len(self.peers):
            raise located_error(
                f"there are the peers 0 to {len(self.peers) - 1}; {self.deploy} is none of them", "deploy"
            )
        return self

    @model_validator(mode="after")
    def _same_classes(self) -> "TrainPeersConfig":
        for index, peer in enumerate(self.peers):
            if peer.num_classes != self.peers[0].num_classes:
                raise located_error("all peers need the same classes", "peers", index)
        return self

    @model_validator(mode="after")
    def _drawn_anew(self) -> "TrainPeersConfig":
        if self.initial is not None:
            raise located_error("every peer starts from weights of its own draw; leave this out", "initial")
        return self
