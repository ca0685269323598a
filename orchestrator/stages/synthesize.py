"""Reconstruct inputs from a teacher's weights and the statistics of its activations.

Everything is a function of (seed, class, batch): a batch does not depend on which stage makes it, nor on what was made
before.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.data_free import SynthesizeConfig
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write, read_json, write_json
from raydistill.stages.record_statistics import (
    STATISTICS,
    TOP,
    activations,
    load_statistics,
    tapped,
)
from raydistill.stages.transfer_data import SAMPLES
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.seeds import SYNTHESIZE
from raydistill.training import model_files
from raydistill.training.activation_statistics import LayerStatistics
from raydistill.training.model_files import TrainedModel
from raydistill.training.reconstruction import reconstruct, reconstruction_loss, thinned

ClassBatch = tuple[int, int]


def synthesize(config: SynthesizeConfig, context: StageContext) -> dict[str, float]:
    """The batches of one shard, a file each; a stopped stage goes on with the first that is not there.

    Reads the folders of the teacher and of its statistics, and from the task only its description.
    """
    teacher = model_files.load(context.input(config.teacher), context.device)
    described = read_json(context.input(config.statistics).payload(STATISTICS))
    maker = _Maker(config, context, teacher, described)
    files = []
    for number, (label, batch) in enumerate(batches_of_shard(config, described["samples"])):
        name = f"samples-{label:05d}-{batch:06d}.safetensors"
        if not (context.folder.path / name).exists():
            if context.should_stop():
                raise StageStopped(f"stopped after {number} batches; run the plan again to continue")
            made = maker.make(label, batch)
            context.report(number + 1, {"synthesize/loss": float(made["loss"])})
            with atomic_write(context.folder.path / name) as temporary:
                save_file(made, temporary)
        context.path(name)
        files.append(name)
    if not files:
        raise StageError(f"there are fewer batches than shards: nothing is left for shard {config.shard}")
    write_json(
        context.path(SAMPLES),
        {
            "files": files,
            "mean": teacher.normalisation.mean.tolist(),
            "std": teacher.normalisation.std.tolist(),
        },
    )
    return _metrics(context, files)


def batches_of_shard(config: SynthesizeConfig, samples: list[int]) -> Iterator[ClassBatch]:
    """The (class, batch) of this shard. `samples`: how many the statistics of each class are of; 0 are none."""
    classes = [label for label, count in enumerate(samples) if count]
    everything = [(label, batch) for batch in range(config.batches) for label in classes]
    yield from everything[config.shard or 0 :: config.shards]


class _Maker:
    """Makes batches of one class each; keeps the statistics of the classes that it has made."""

    def __init__(
        self,
        config: SynthesizeConfig,
        context: StageContext,
        teacher: TrainedModel,
        described: dict[str, object],
    ) -> None:
        self.config, self.context, self.teacher = config, context, teacher
        self.temperature = float(str(described["temperature"]))
        layers = [] if config.objective == "top" else [*map(str, described["layers"])]  # type: ignore[call-overload]
        self.model = tapped(teacher.model, tuple(name for name in layers if name != TOP))
        self.layers = (*self.model.names, TOP)
        self.classes = len(teacher.class_names)
        self.known: dict[int, dict[str, LayerStatistics]] = {}

    def make(self, label: int, batch: int) -> dict[str, Tensor]:
        """One batch: inputs (B, ...) in the task's units, labels and ids (B,), and the loss (1,) that is left."""
        config, device = self.config, self.context.device
        generator = torch.Generator().manual_seed(fold_key(config.seed, SYNTHESIZE, label, batch))
        start = self._start(generator).to(device)
        statistics = self._statistics(label)
        wanted = {
            name: statistics[name].draw(config.batch_size, generator).to(device) for name in self.layers
        }
        by_size = config.layer_weights == "inverse_size"
        is_thinned = config.objective == "dropout"
        with thinned(self.teacher.model, generator) if is_thinned else nullcontext(1) as dropouts:
            if not dropouts:
                raise StageError("the teacher has no dropout layer to thin it by; write `objective: all`")
            inputs = reconstruct(
                self._activations,
                start,
                wanted,
                steps=config.steps,
                learning_rate=config.learning_rate,
                by_size=by_size,
                smooth_every=config.smooth_every,
            )
            with torch.no_grad():
                loss = reconstruction_loss(wanted, self._activations(inputs), by_size=by_size)
        if not inputs.isfinite().all():
            raise StageError(f"class {label}, batch {batch}: not finite; lower the `learning_rate`")
        with torch.no_grad():
            is_agreed = self.teacher.logits(inputs).argmax(dim=1) == label
        # Numbered so that more batches, classes staying as many, leave the ids of the first ones as they are.
        first = (batch * self.classes + label) * config.batch_size
        return {
            "inputs": inputs.cpu().contiguous(),
            "labels": torch.full((config.batch_size,), label),
            "ids": torch.arange(first, first + config.batch_size),
            "loss": loss.cpu().reshape(1),
            "agreed": is_agreed.float().mean().cpu().reshape(1),
        }

    def _activations(self, inputs: Tensor) -> dict[str, Tensor]:
        return activations(self.model(self.teacher.normalisation(inputs)), self.temperature)

    def _start(self, generator: torch.Generator) -> Tensor:
        config, teacher = self.config, self.teacher
        noise = torch.randn(config.batch_size, *teacher.input_shape, generator=generator)
        own = teacher.normalisation.on("cpu")
        mean = own.mean if config.initial_mean is None else config.initial_mean
        std = own.std if config.initial_std is None else config.initial_std
        return noise * std + mean

    def _statistics(self, label: int) -> dict[str, LayerStatistics]:
        if label not in self.known:
            self.known[label] = load_statistics(self.context.input(self.config.statistics), label)
        return self.known[label]


def _metrics(context: StageContext, files: list[str]) -> dict[str, float]:
    samples, losses, agreed = 0, [], []
    for name in files:
        with safe_open(context.folder.path / name, "pt") as made:
            samples += made.get_slice("ids").get_shape()[0]
            losses.append(made.get_tensor("loss"))
            agreed.append(made.get_tensor("agreed"))
    return {
        "synthesize/samples": float(samples),
        "synthesize/loss": torch.cat(losses).mean().item(),
        "synthesize/agreement": torch.cat(agreed).mean().item(),
    }
