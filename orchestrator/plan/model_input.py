"""How a model wants its pictures, where that is not as the task delivers them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raydistill.plan.config import Config, Integer, Number
from raydistill.plan.config_errors import Mistake, located_error, shown
from raydistill.tasks.task import Task

if TYPE_CHECKING:
    from raydistill.plan.order import Site

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CHANNELS = {"rgb": 3, "grey": 1}
Size = Annotated[Integer, Field(ge=1, le=2048)]
LARGEST = 2**24  # pixels of what is scaled, before the centre is cut out


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
    part of the model wherever it goes. `input: published` is what torchvision or timm tell of their weights.
    """

    plain_word: ClassVar[str | None] = "like"

    like: Literal["published"] | None = Field(
        None, description="what the library tells, but for what stands beside it"
    )
    size: Size | None = Field(None, description="height and width that it takes")
    resize: Size | None = Field(
        None, description="of the shorter side, before the centre of `size` is cut out"
    )
    mean: PerChannel | None = Field(
        None, description="of pixels in [0, 1]: `imagenet`, a number, or one per channel"
    )
    std: PerChannel | None = Field(None, description="`imagenet`, a number, or one per channel")
    channels: Literal["rgb", "grey"] | None = Field(None, description="that it takes, whatever the task has")
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="of scaling; bilinear when left out"
    )

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
        if self.channels is None:
            return channels if self.like is None else CHANNELS["rgb"]
        return CHANNELS[self.channels]

    def shape(self, view: tuple[int, ...]) -> tuple[int, int, int]:
        """Of one input, where that of a view is (channels, height, width)."""
        channels, height, width = view
        size = (height, width) if self.size is None else (self.size, self.size)
        return (self.num_channels(channels), *size)

    def settled(self, published: Mapping[str, Any]) -> Self:
        """With what is published in the place of what was left out."""
        written = self.model_dump(exclude_none=True, exclude={"like"})
        return type(self).model_validate({**published, **written})

    def __str__(self) -> str:
        """In words, once nothing is left open."""
        numbers = (" ".join(f"{value:g}" for value in values or ()) for values in (self.mean, self.std))
        mean, std = numbers
        return f"{self.size} x {self.size}, {self.channels}, mean {mean}, std {std}, {self.interpolation}"

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
        if self.resize is not None and self.resize**2 * max(shape[1:]) > LARGEST * min(shape[1:]):
            return Mistake(("resize",), f"makes a picture of {shape[1]} x {shape[2]} too large to hold")
        own = self.num_channels(shape[0])
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, own):
                return Mistake(
                    (key,),
                    f"has {len(values)} numbers for {own} channel{'s' * (own > 1)}"
                    + ("; write `channels: rgb` beside it" if (own, len(values)) == (1, 3) else ""),
                )
        return None

    def enlarges(self, task: Task) -> str | None:
        """What to say where the pictures that it wants are larger than the task's, and it matters or can be helped."""
        shape, wanted = task.input_shape, self.resize or self.size
        if wanted is None or len(shape) != 3 or wanted <= min(shape[1:]):
            return None
        told = f"pictures of {shape[1]} x {shape[2]} are enlarged to {wanted} x {wanted}, and show no more detail"
        if hasattr(task, "image_size"):
            return f"{told}; set `image_size: {wanted}` in the task, and `input: {{size: …}}` in models that want less"
        return told if wanted >= 2 * min(shape[1:]) else None

    def advice(self, site: "Site") -> Iterator[Mistake]:
        if (told := self.enlarges(site.task)) is not None:
            yield Mistake((), told)
        if self.mean is not None and max(self.mean) > 1:
            yield Mistake(
                ("mean",),
                "pixels lie in [0, 1], not in [0, 255]; divide `mean` and `std` by 255 if that is meant",
            )

    def check(self, site: "Site") -> None:
        """The task's inputs are pictures, in as many channels."""
        if (mistake := self.mistake(site.task.input_shape, site.task.input_dtype)) is not None:
            raise site.error(
                f"`input` {mistake.message}" if not mistake.path else mistake.message, *mistake.path
            )
