"""How a model wants its pictures, where that is not as the task delivers them."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from raydistill.plan.config import Config, Integer, Number
from raydistill.plan.config_errors import Mistake, located_error, shown

if TYPE_CHECKING:
    from raydistill.plan.order import Site

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CHANNELS = {"rgb": 3, "grey": 1}
Size = Annotated[Integer, Field(ge=1, le=4096)]


def _numbers(raw: Any) -> Any:
    """A single number holds for every channel."""
    return (raw,) if isinstance(raw, int | float) and not isinstance(raw, bool) else raw


PerChannel = Annotated[tuple[Number, ...], BeforeValidator(_numbers), Field(min_length=1)]


class InputConfig(Config):
    """What a model makes of the view that all models of a plan see: `{size: 224, mean: imagenet, std: imagenet}`.

    Crops, flips and mixup are the view's, drawn once for student and teacher. From there on each is on its own: the
    view is scaled to `size` x `size` (antialiased), or its shorter side to `resize`, and of that the central `size` x
    `size` is cut out, in training too; grey is repeated or colours are mixed to grey; `mean` is taken off the pixels,
    which lie in [0, 1], and what is left divided by `std`. What is left out stays as the task has it. All of this is
    part of the model wherever it goes, as is what it was given.
    """

    size: Size | None = Field(None, description="height and width that it takes")
    resize: Size | None = Field(
        None, description="of the shorter side, before the centre of `size` is cut out"
    )
    mean: PerChannel | None = Field(
        None, description="`imagenet`, or a number per channel, of pixels in [0, 1]"
    )
    std: PerChannel | None = Field(None, description="`imagenet`, or a number per channel")
    channels: Literal["rgb", "grey"] | None = Field(None, description="that it takes, whatever the task has")
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="of scaling")

    @model_validator(mode="before")
    @classmethod
    def _words_are_numbers(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        for key in IMAGENET.keys() & raw.keys():
            if isinstance(raw[key], str) and raw[key] != "imagenet":
                raise located_error(
                    f"should be `imagenet`, a number, or a number per channel, not {shown(raw[key])}", key
                )
        return {
            key: IMAGENET[key] if key in IMAGENET and value == "imagenet" else value
            for key, value in raw.items()
        }

    @model_validator(mode="after")
    def _fits_together(self) -> "InputConfig":
        if (self.mean is None) != (self.std is None):
            given, missing = ("std", "mean") if self.mean is None else ("mean", "std")
            raise located_error(f"`{given}` needs a `{missing}` beside it", given)
        if self.std is not None and min(self.std) <= 0:
            raise located_error("every deviation is above 0", "std")
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise located_error(
                "the centre of `size` is cut out of what was scaled to `resize`: write a `size` that is no larger",
                "resize",
            )
        return self

    def num_channels(self, channels: int) -> int:
        """What it takes, where the task has `channels`."""
        return channels if self.channels is None else CHANNELS[self.channels]

    def mistake(self, shape: tuple[int, ...], dtype: str = "float32") -> Mistake | None:
        """What does not fit inputs of a shape."""
        if len(shape) != 3 or dtype != "float32":
            return Mistake(
                (), f"is about pictures, and an input of the task is {dtype} {shape}; leave it out"
            )
        if self.num_channels(shape[0]) != shape[0] and shape[0] not in CHANNELS.values():
            return Mistake(
                ("channels",),
                f"turns grey and colour into one another, and pictures have {shape[0]} channels",
            )
        own = self.num_channels(shape[0])
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, own):
                return Mistake(
                    (key,),
                    f"has {len(values)} numbers for {own} channel{'s' * (own > 1)}"
                    + ("; write `channels: rgb` beside it" if (own, len(values)) == (1, 3) else ""),
                )
        return None

    def check(self, site: "Site") -> None:
        """The task's inputs are pictures, in as many channels."""
        if (mistake := self.mistake(site.task.input_shape, site.task.input_dtype)) is not None:
            raise site.error(
                f"`input` {mistake.message}" if not mistake.path else mistake.message, *mistake.path
            )
