"""The stages in which models teach one another while they learn, without a teacher that was there before."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.plan.config import FINE_TEMPERATURE, Boolean, Integer, NonNegative, Number, Temperature
from raydistill.plan.config_errors import located_error
from raydistill.plan.model import ModelConfig
from raydistill.plan.stage import StageConfig

if TYPE_CHECKING:
    pass


class OnlineConfig(TrainingConfig):
    """What the stages have in common whose models have no teacher but one another.

    Where one stage trains several members, of which one is deployed, the lines of metrics that are written during
    training, and early stopping, are about the members' ensemble.
    """

    makes_students = True

    temperature: Temperature

    def role(self, *, teaches: bool, has_student: bool) -> str:
        return "teacher" if teaches else "student"

    @property
    def revision(self) -> int:
        """2: divergences at temperatures above 100 are computed in float64."""
        return 2 if self.temperature > FINE_TEMPERATURE else 1

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
    `ensemble`, a model `branched`.

    Settings: three branches, T = 3 and the ramp of 80 epochs are the release's (CIFAR, 300 epochs, SGD 0.1); the paper
    has no ramp.
    Published: CIFAR-100 errors: ResNet-110 25.33 → 21.62 %, without the last term 24.73; ImageNet, ResNet-18 30.48 →
    29.45.
    Pitfalls: the gate's batch norm wants 2 samples. Its ReLU makes it even where all of it is negative. `ramp_epochs`
    belongs to a training's length: a short one never hears its ensemble.
    Releases: its ResNet-110 has bottleneck blocks: no ResNet-110 of other tables. OKDDip's version lets the last term
    train the ensemble: `detach_teacher: false`.
    """

    word = "train_branches"
    implementation = "raydistill.stages.train_branches:train_branches"

    model: ModelConfig
    """The network whose last stage and head are multiplied."""
    branches: Annotated[Integer, Field(ge=2, le=100)] = 3
    """How often."""
    temperature: Temperature = 3.0
    """Divides the logits of branches and ensemble."""
    weight: NonNegative = 1.0
    """Of the loss against the ensemble."""
    ramp_epochs: Annotated[Integer, Field(ge=0)] = 80
    """How long that weight grows."""
    detach_teacher: Boolean = True
    """Let the ensemble teach without being moved by it."""
    deploy: Literal["best", "first", "ensemble"] = "best"
    """Which branch becomes the stage's model, or all of them."""

    @model_validator(mode="after")
    def _is_one_of_ours(self) -> "TrainBranchesConfig":
        check_plain(self.model, "can branch", "branches")
        return self

    def made_model(self) -> ModelConfig | None:
        return None if self.deploy == "ensemble" else self.model


def check_plain(model: ModelConfig, can: str, additions: str, key: str = "model") -> None:
    """Refuse, at `key`, what is no chain of named parts, to which something is added that it `can` have."""
    if ":" in model.name or model.name in ("branched", "reused_head"):
        raise located_error(
            f"only a plain network of ours {can}, such as `resnet20`; `{model.name}` is none", key
        )
    if model.input is not None:
        raise located_error(
            f"a network with {additions} takes the task's inputs as they are; leave `input` out", key, "input"
        )


class SelfDistillConfig(OnlineConfig):
    """Train a network whose end teaches early exits of its own, which are taken off afterwards (be your own teacher,
    BYOT, Zhang et al. 2019, arXiv 1905.08094).

    Every stage of `model` but the last one has an exit: a bottleneck to the last stage's grid and the embedding's
    width (1x1, a convolution that strides over the ratio of the grids, 1x1; batch norm, ReLU), its mean f_l, and a
    linear classifier with logits z_l; f and z are the network's own embedding and logits.
    loss = (1 - soft_weight) · (CE(z) + Σ CE(z_l)) + soft_weight · Σ T² KL(softmax(z/T) ‖ softmax(z_l/T))
    + feature_weight · Σ mean of (f_l - f)², where either is above 0. Nothing of the last two moves z or f.

    Settings: those of a re-implementation, whose features' sum over a batch of 128 with 1e-6 is the mean over 512
    channels with 0.066.
    Published: there, CIFAR-100, exits 1 to 4 of a ResNet-18: 66.57, 74.69, 78.04, 78.73 %.
    Pitfalls: the cross-entropies of all exits meet in the first stages, so that a deep network may want a smaller
    learning rate than alone. What is stored is the plain network; how good each exit was is in the record,
    `test/exit1_accuracy` and so on, the last one's as `last_exit`. Early stopping and `validation/accuracy` look at the
    plain network.
    Releases: the re-implementation's weight of the features belongs to one batch and one width; it gives the command of
    one network for another.
    """

    word = "self_distill"
    implementation = "raydistill.stages.self_distill:self_distill"

    model: ModelConfig
    """The network that gets exits."""
    temperature: Temperature = 3.0
    """Divides the logits of all exits."""
    soft_weight: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Of the earlier exits' distance from the last one's logits; the labels have the rest."""
    feature_weight: NonNegative = 0.05
    """Of the distance from its embedding."""

    @model_validator(mode="after")
    def _is_one_of_ours(self) -> "SelfDistillConfig":
        check_plain(self.model, "can have exits", "exits")
        return self

    @property
    def compares_features(self) -> bool:
        """Whether its network has stages for exits is looked at when the plan is read."""
        return True


class TrainPeersConfig(OnlineConfig):
    """Train several models that teach one another (deep mutual learning, Zhang et al. 2018, arXiv 1706.00384).

    loss of peer i = CE(z_i) + weight / (K - 1) · Σ_j T² KL(softmax(z_j/T) ‖ softmax(z_i/T)) over the other peers j,
    whose logits are constants there: all K step at once by the sum of the losses, as each would by its own (`clip_norm`
    alone looks at all gradients together). `deploy` says which one is kept: the best on validation, or by its place in
    `peers`.

    Settings: T = 1 and weight 1 are the paper's (SGD 0.1 with Nesterov, batches of 64, 200 epochs).
    Published: CIFAR-100: two ResNet-32 68.99 → 71.19 and 70.75 %, with WRN-28-10 as its peer 70.73 %.
    Pitfalls: peers need the learning rate of their own training, not that of one network's; all of them are in memory
    at once.
    Releases: adds 1e-8 within logarithms and does not divide by K - 1; the paper updates one network after another.
    """

    word = "train_peers"
    implementation = "raydistill.stages.train_peers:train_peers"

    peers: tuple[ModelConfig, ...] = Field(min_length=1)
    """The models that train side by side."""
    temperature: Temperature = 1.0
    """Divides the logits of all."""
    weight: NonNegative = 1.0
    """Of the loss against the others."""
    deploy: Literal["best"] | Annotated[Integer, Field(ge=0)] = "best"
    """Which one becomes the stage's model."""

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


class CodistillConfig(OnlineConfig):
    """Train `peers` copies of a model that learn from one another's old predictions, each a stage of its own on its own
    worker (co-distillation, Anil et al. 2018, arXiv 1804.03235).

    loss of peer i = CE(z_i) + weight · mean_j T² KL(softmax(v_j/T) ‖ softmax(z_i/T)) over the other peers j that it can
    hear, where v_j are the logits, in eval mode, of the weights and buffers that peer j published last. Every
    `exchange_every` steps a peer publishes its own and looks for those of the others; no peer waits. A peer that has
    published nothing yet, or whose file is damaged, does not count until the next look; one that died counts with its
    last file and publishes again once restarted; a finished peer counts with its final model. A peer that sees no other
    trains on labels alone: the metrics `peers_heard` and `staleness` (own steps minus those of the weights that were
    read; below 0 the other is ahead; a step without another peer counts as 0 in an epoch's mean) say how it went. As it
    depends on the workers' speed, no two runs are alike to the last digit.

    The peers differ in their seeds: `seed`, `seed` + 1, ... `data: shards` gives each a part of the transfer set of its
    own, drawn with `seed`, in place of all. During the first `burn_in` epochs, a fraction if you like, the weight is 0.
    `replicas` are groups of peers: `stage.0` and `stage.1` are the first two peers, `stage.2` and `stage.3` the next.
    All peers of a group must fit on the Ray cluster at once; `--local`, where stages run one after another, is refused:
    `train_peers` trains peers in one process, with fresh predictions.

    Settings: exchanges every 50 steps and an epoch of burn-in follow the paper.
    Published: exchanges every 50 steps do not hurt. ImageNet, two ResNet-50 with batches of 256 for 45 epochs,
    exchanges every 2500 steps, no burn-in (Sodhani et al. 2020): 75.9 % against 76.1 for one with batches of 512 for
    90, if the weight decay falls along the way: 1e-4, 1e-5, 0; with 1e-4 throughout about 2 points less.
    Pitfalls: peers regularise: use less of whatever else does. No two runs are alike to the last digit.
    Releases: there is no public one of the paper's.
    """

    word = "codistill"
    implementation = "raydistill.stages.codistill:codistill"
    resumes_exactly = False  # what a peer hears depends on the workers' speed

    model: ModelConfig
    """The model that every peer is."""
    peers: Annotated[Integer, Field(ge=2, le=100)] = 2
    """How many there are in a group."""
    peer: Annotated[Integer, Field(ge=0)] | None = Field(None, description="the graph writes it")
    temperature: Temperature = 1.0
    """Divides the logits of all."""
    weight: NonNegative = 1.0
    """Of the loss against the others."""
    burn_in: NonNegative = Field(1.0, description="epochs; 0.5 is half of one")
    exchange_every: Annotated[Integer, Field(ge=1)] = Field(50, description="steps")
    data: Literal["shared", "shards"] = "shared"
    """The same samples for all, or a part for each."""

    @model_validator(mode="after")
    def _learns_from_its_peers(self) -> "CodistillConfig":
        if self.burn_in >= self.epochs:
            raise located_error(
                f"after {self.burn_in:g} epochs without peers nothing is left of {self.epochs}; burn in for less",
                "burn_in",
            )
        return self

    def num_nodes(self, stages: Mapping[str, StageConfig]) -> int | None:
        """One per peer of every group."""
        return self.peers * self.replicas

    def for_node(self, index: int) -> Self:
        """A peer has its own seed, and its place in its group."""
        return super().for_node(index).replace(peer=index % self.peers)

    def peers_of(self, index: int) -> tuple[int, ...]:
        """The other peers of its group."""
        first = index - index % self.peers
        return tuple(other for other in range(first, first + self.peers) if other != index)

    @property
    def data_shards(self) -> int:
        return self.peers if self.data == "shards" else 1

    @property
    def group_seed(self) -> int:
        """The seed of the first peer of this one's group."""
        return self.seed - (self.peer or 0)
