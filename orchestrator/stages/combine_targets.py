"""Combine the stored targets of several teachers into one."""

from pathlib import Path

from torch import Tensor

from raydistill.errors import StageError
from raydistill.kinds.targets import LEAST_LOG_PROBABILITY, CombineTargetsConfig
from raydistill.models.taps import Output
from raydistill.plan.classes import ClassesConfig
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder
from raydistill.runs.view import read_identity
from raydistill.stages.committees import load_committee
from raydistill.stages.predict_targets import write_shards
from raydistill.stages.teachers import fixed_weights
from raydistill.stages.training_stage import load_data
from raydistill.stages.transfer_data import described_transfer_set
from raydistill.targets.combine import EntropyWeights, combine
from raydistill.targets.reader import open_targets
from raydistill.targets.store import MANIFEST, TargetWriter, load_manifest
from raydistill.training.data import Batch

SAMPLES_AT_ONCE = 500


def combine_targets(config: CombineTargetsConfig, context: StageContext) -> dict[str, float]:
    """Arithmetic mean (a mixture, formed when read), geometric mean (logits of its own), or a committee's log q."""
    if config.committee is not None:
        metrics = _fused(config, context)
    elif context.is_main:  # reading is all there is to do
        metrics = _mean(config, context)
    if not context.is_main:
        return {}
    manifest = load_manifest(context.folder.path)
    context.payload.update([MANIFEST, *manifest.files])
    return metrics


def _mean(config: CombineTargetsConfig, context: StageContext) -> dict[str, float]:
    members = [context.input(ref).path for ref in config.targets]
    is_entropy = config.weights == "entropy"
    weights = EntropyWeights(config.scale) if is_entropy else fixed_weights(config, config.targets, context)
    known = [known_classes(member, context) for member in members] if config.rule == "kl_fusion" else []
    return combine(
        context.folder.path, members, root=context.root, rule=config.rule, weights=weights, known=known
    )


def known_classes(targets: Path, context: StageContext) -> list[int] | None:
    """The classes of the task that the teacher of stored targets tells apart; None for all."""
    config = read_identity(targets)["config"]
    if "teacher" in config:
        teacher = StageFolder.of_fingerprint(load_manifest(targets).teachers[0], context.root)
        config = read_identity(teacher.path)["config"].get("model", {})
    if not (classes := config.get("classes")):
        return None
    return ClassesConfig(**{key: classes[key] for key in ("names", "map", "others") if key in classes}).known(
        context.task.class_names
    )


def _fused(config: CombineTargetsConfig, context: StageContext) -> dict[str, float]:
    """Store log q of the generalist's stored predictions and the specialists that these call for."""
    assert config.committee is not None
    generalist = open_targets(context.input(config.targets[0]).path, root=context.root, expect=None)
    if generalist.top_k is not None:
        raise StageError(
            f"`{config.targets[0]}` keeps {generalist.top_k.kept} classes of each prediction, but specialists are fused"
            " with all of it; leave its `top_k` out"
        )
    transfer = described_transfer_set(
        generalist.description, context.root, context.task, lambda: load_data(context), context.device
    )
    committee = load_committee(config.committee, context, context.task.class_names)
    rows = generalist.rows_of(transfer.split.ids)
    description = generalist.description.description().model_copy(
        update={
            "rule": "kl_fusion",
            "teachers": (
                *generalist.description.teachers,
                *(context.input(ref).done_record().fingerprint for ref in config.committee.specialists),
            ),
        }
    )
    writer = TargetWriter(context.folder.path, description, batch_size=SAMPLES_AT_ONCE, shared=True)

    def generalist_logits(batch: Batch) -> Tensor:
        return generalist.read(rows[batch.rows], batch.view, device=context.device).logits[:, 0]

    def answer(batch: Batch) -> Output:
        fused = committee.answer(batch.inputs, generalist_logits(batch))
        return Output(fused.log_probabilities.clamp(min=LEAST_LOG_PROBABILITY), {})

    if write_shards(writer, transfer, answer, SAMPLES_AT_ONCE, context) is None:
        return {}
    called = (
        int(committee.called(generalist.read(block, view, device=context.device).logits[:, 0]).sum())
        for view in range(description.views_stored)
        for block in rows.split(SAMPLES_AT_ONCE)
    )
    return {
        "targets/rows": float(description.rows * description.views_stored),
        "targets/answers": float(sum(called)),
    }
