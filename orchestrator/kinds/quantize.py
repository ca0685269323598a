"""A finished model in 8-bit integers: what its stage can be told."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from raydistill.kinds.stage_bases import BatchSize
from raydistill.kinds.training import TransferConfig
from raydistill.lookup import missing_onnx_writer
from raydistill.plan.config import Boolean, Integer, ModelRef, Seed
from raydistill.plan.config_errors import Mistake
from raydistill.plan.stage import StageConfig

if TYPE_CHECKING:
    from raydistill.plan.order import Site


class QuantizeConfig(StageConfig):
    """Make an int8 model of a finished one, without training: an ONNX program, judged in onnxruntime.

    Weights become integers, each channel by a scale of its own; so do activations, by scales from what they are on
    `samples` of the transfer set. What is judged, predicted with and exported is the integer model itself, on this
    machine's kernels. Beside it the same file is run without onnxruntime's optimisations: where the answers part, the
    stage says so.

    `seven_bits` spares the weights' last bit. Processors without VNNI add two products in 16 bits, which overflow
    without a word: 8-bit weights then gave 37.5 % where 57.4 % were right. Set it to false for processors that have it.

    Needs `pip install 'raydistill[deploy]'`. A model with replicas is made once per replica.
    """

    word = "quantize"
    implementation = "raydistill.stages.quantize:quantize"
    makes = "model"
    makes_program = True
    zipped = frozenset({"model"})

    model: ModelRef
    """Whose weights and activations become integers."""
    transfer: TransferConfig = TransferConfig()
    """On which samples activations are looked at; labels are not."""
    samples: Annotated[Integer, Field(ge=1, le=1_000_000)] = 512
    """How many of them, drawn by the seed."""
    calibration: Literal["largest", "entropy", "percentile"] = "largest"
    """What bounds the activations: the largest seen, least information lost, or all but the outermost."""
    per_channel: Boolean = True
    """Whether each channel of a layer's weights has a scale of its own."""
    seven_bits: Boolean = True
    """Whether weights stay within 7 bits, so that sums overflow on no processor."""
    seed: Seed = 0
    """Draws the samples."""
    batch_size: BatchSize = 500
    """Samples at a time, when the model is judged."""

    def num_nodes(self, stages: Mapping[str, StageConfig]) -> int | None:
        """As many as its model has."""
        found = stages.get(self.model)
        return None if found is None or found is self else found.num_nodes(stages)

    def advice(self, site: "Site") -> Iterator[Mistake]:
        if (missing := missing_onnx_writer()) is not None:
            yield Mistake(("stage",), f"{missing}, where this stage will run")

    @property
    def judged_on(self) -> tuple[str, ...]:
        return ("validation", "test")
