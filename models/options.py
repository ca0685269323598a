"""What a user may choose about each family of architectures. Imports no torch: plans are checked with these alone.

Defaults are the published setting of the family; a name in `raydistill.models.MODELS` decides some of the fields.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DEEPEST = (
    2000  # layers: the deepest published network of these families has 1202, and each takes time to build
)
Width = Annotated[int, Field(ge=1)]
Layers = Annotated[int, Field(ge=1, le=DEEPEST)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Multiplier = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DROP_PATH: Any = Field(
    0.0,
    description="share of samples that pass the last block by in training, less before it (arXiv 1603.09382)",
)


class Options(BaseModel):
    """Options of one family of architectures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    came_later: ClassVar[frozenset[str]] = frozenset()
    """Options without which there are models: they are not written down at their default, so that identities stay."""

    def written(self) -> dict[str, Any]:
        """All of them as JSON values."""
        fields = type(self).model_fields
        late = {key for key in self.came_later if getattr(self, key) == fields[key].default}
        return self.model_dump(mode="json", exclude=late)


class MlpOptions(Options):
    """A multilayer perceptron with ReLU; inputs of any shape are flattened. Without widths it is linear."""

    widths: tuple[Width, ...] = Field(
        (800, 800), max_length=DEEPEST, description="units of each hidden layer"
    )
    dropout: Probability = Field(0.0, description="share of hidden units dropped; 0.5 in arXiv 1207.0580")
    input_dropout: Probability = Field(0.0, description="share of inputs dropped; 0.2 in arXiv 1207.0580")


class AcousticOptions(Options):
    """The acoustic network of arXiv 1503.02531: 26 frames of 40 filterbank values in, a logit per HMM state out."""

    layers: Layers = Field(8, description="hidden layers")
    width: Width = Field(2560, description="units of each hidden layer")
    dropout: Probability = Field(0.0, description="share of hidden units dropped")


class CnnOptions(Options):
    """A plain convolutional network: stages of 3x3 convolutions with ReLU, each closed by a 2x2 max-pool."""

    came_later = frozenset({"average"})

    widths: tuple[Width, ...] = Field(
        (32, 64), min_length=1, max_length=64, description="channels of each stage"
    )
    convolutions: tuple[Layers, ...] = Field((), description="convolutions in each stage; left out, one each")
    batch_norm: bool = Field(False, description="batch normalisation after every convolution")
    hidden: tuple[Width, ...] = Field(
        (), max_length=DEEPEST, description="units of the hidden layers after the last pool"
    )
    dropout: Probability = Field(0.0, description="share of units dropped after each of those hidden layers")
    average: bool = Field(
        False, description="the mean over all places after the last stage, in place of its max-pool"
    )

    @model_validator(mode="after")
    def _one_count_per_stage(self) -> Self:
        if self.convolutions and len(self.convolutions) != len(self.widths):
            raise ValueError(
                f"`convolutions` counts {len(self.convolutions)} stages and `widths` {len(self.widths)}; "
                "give both the same length"
            )
        return self


class LeNetOptions(Options):
    """LeNet-5 with ReLU and max-pooling, as data-free distillation papers use it; 28x28 or 32x32 inputs."""

    width_multiplier: Multiplier = Field(
        1.0, description="factor on 6, 16, 120 and 84 units; 0.5 is the half LeNet"
    )


class ResNetOptions(Options):
    """A residual network for small images (arXiv 1512.03385 §4.2): three stages of 16, 32 and 64 channels, or as many
    as `blocks` says, each of twice the one before."""

    came_later = frozenset({"drop_path", "blocks"})

    depth: int = Field(
        20, le=DEEPEST, description="layers with weights: 6n + 2 with basic blocks, 9n + 2 with bottlenecks"
    )
    width_multiplier: Multiplier = Field(1.0, description="factor on the stages' channels")
    stem_width: Width | None = Field(
        None, description="channels of the first convolution; left out, as stage 1"
    )
    block: Literal["basic", "bottleneck"] = Field("basic", description="residual block")
    shortcut: Literal["projection", "padding"] = Field(
        "projection",
        description="where shapes change: 1x1 convolution (common benchmark) or zeros (the paper's A)",
    )
    drop_path: Probability = DROP_PATH
    blocks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=6)] | None = (
        Field(
            None,
            description="residual blocks of each stage; left out, as many in each of three, by the depth",
        )
    )

    @model_validator(mode="after")
    def _depth_fits_the_block(self) -> Self:
        if self.blocks is None:
            _check_depth(self.depth, step=3 * self._layers, rest=2)
        elif self.depth != (depth := self._layers * sum(self.blocks) + 2):
            raise ValueError(f"these `blocks` make a depth of {depth}, not {self.depth}")
        return self

    @model_validator(mode="after")
    def _padding_only_widens(self) -> Self:
        first_stage = self.widths[0] * self.expansion
        if self.shortcut == "padding" and self.stem_width is not None and self.stem_width > first_stage:
            raise ValueError(
                f"`stem_width` is {self.stem_width} and the first stage has {first_stage} channels; "
                "padding can only add channels, use `shortcut: projection`"
            )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages, before a bottleneck's expansion."""
        stages = range(len(self.blocks_of_stages))
        return tuple(max(1, round(16 * 2**stage * self.width_multiplier)) for stage in stages)

    @property
    def expansion(self) -> int:
        """Channels that a block gives out per channel of its stage."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def blocks_of_stages(self) -> tuple[int, ...]:
        """How many blocks each stage has."""
        return self.blocks or ((self.depth - 2) // (3 * self._layers),) * 3

    @property
    def _layers(self) -> int:
        """Of a block."""
        return 3 if self.block == "bottleneck" else 2


class WideResNetOptions(Options):
    """A wide residual network with pre-activation blocks (arXiv 1605.07146)."""

    came_later = frozenset({"drop_path"})

    depth: int = Field(28, le=DEEPEST, description="6n + 4")
    width_multiplier: int = Field(10, ge=1, description="factor on the stages' 16, 32 and 64 channels")
    dropout: Probability = Field(0.0, description="between the two convolutions of a block; 0.3 in the paper")
    drop_path: Probability = DROP_PATH

    @field_validator("depth")
    @classmethod
    def _depth_fits_the_block(cls, depth: int) -> int:
        _check_depth(depth, step=6, rest=4)
        return depth


class VggOptions(Options):
    """VGG with batch normalisation and one linear layer, as in the common CIFAR-100 benchmark."""

    depth: Literal[8, 13] = Field(
        8, description="the published number of layers, three fully connected ones included"
    )


class MobileNetV2Options(Options):
    """MobileNetV2 (arXiv 1801.04381) for 32x32 images, as in the common CIFAR-100 benchmark."""

    width_multiplier: Multiplier = Field(
        1.0, description="factor on all channels but the last 1280; benchmark: 0.5"
    )
    expansion: int = Field(6, ge=1, description="hidden channels of a block per input channel")


class ShuffleNetV2Options(Options):
    """ShuffleNetV2 (arXiv 1807.11164) for 32x32 images, as in the common CIFAR-100 benchmark."""

    width_multiplier: float = Field(1.0, description="one of the paper's widths: 0.5, 1.0, 1.5 or 2.0")

    @field_validator("width_multiplier")
    @classmethod
    def _is_a_published_width(cls, width_multiplier: float) -> float:
        if width_multiplier not in (0.5, 1.0, 1.5, 2.0):
            raise ValueError(f"the paper has the widths 0.5, 1.0, 1.5 and 2.0, not {width_multiplier}")
        return width_multiplier


class BranchedOptions(Options):
    """A network whose last stage and head stand several times on a shared trunk (ONE, arXiv 1806.04606).

    A gate mixes the branches' logits for each sample; `train_branches` trains them to teach one another.
    """

    model: dict[str, Any] = Field(description="the plain network, e.g. `{name: resnet20}`")
    branches: int = Field(3, ge=2, le=100, description="how often, the network's own included")

    @model_validator(mode="after")
    def _is_one_of_ours(self) -> Self:
        from raydistill.models import find_architecture  # the table of models is made of these options

        name = self.model.get("name")
        if not isinstance(name, str):
            raise ValueError("`model` is written `{name: resnet20}`, with its options beside the name")
        architecture = find_architecture(name)
        # And each depth of them would be checked twice as often.
        if architecture.options in (BranchedOptions, ReusedHeadOptions):
            raise ValueError("`model` is a plain network; branches do not branch again")
        architecture.read_options(self.model_options)
        return self

    @property
    def model_name(self) -> str:
        """Name of the plain network."""
        return str(self.model["name"])

    @property
    def model_options(self) -> dict[str, Any]:
        """Options of the plain network."""
        return {key: value for key, value in self.model.items() if key != "name"}


class ReusedHeadOptions(Options):
    """A network that ends in the classifier of another one, behind a projector (SimKD, arXiv 2203.14001).

    `reuse_classifier` trains it.
    """

    model: dict[str, Any] = Field(description="the network, e.g. `{name: resnet8x4}`")
    head: dict[str, Any] = Field(description="the one whose classifier it is, e.g. `{name: resnet32x4}`")
    factor: int = Field(2, ge=1, description="how much narrower the projector is than the maps that it makes")

    @model_validator(mode="after")
    def _are_plain_networks_of_ours(self) -> Self:
        from raydistill.models import find_architecture  # the table of models is made of these options

        for key, model in (("model", self.model), ("head", self.head)):
            if not isinstance(name := model.get("name"), str):
                raise ValueError(f"`{key}` is written `{{name: resnet20}}`, with its options beside the name")
            architecture = find_architecture(name)
            if architecture.options in (BranchedOptions, ReusedHeadOptions):
                raise ValueError(f"`{key}` is a plain network; `{name}` is none")
            architecture.read_options({option: model[option] for option in model if option != "name"})
        return self


class ExportedOptions(Options):
    """A network that exists as a program, in its `weights`: of `torch.export` (`.pt2`) or ONNX (`.onnx`). It teaches
    and is judged, in `stage: pretrained`; it cannot be trained. Its named outputs are its features.
    """


class TorchvisionOptions(Options):
    """A classification network of torchvision by its name there. Nothing is downloaded."""

    architecture: str = Field(description="torchvision's name, e.g. `resnet34`")


def _check_depth(depth: int, *, step: int, rest: int) -> None:
    blocks = (depth - rest) // step
    if blocks >= 1 and depth == step * blocks + rest:
        return
    lower = step * max(1, blocks) + rest
    raise ValueError(
        f"a depth of {depth} is not {step}n + {rest}; the nearest are {lower} and {lower + step}"
    )
