"""Combine the stored targets of several teachers into one."""

import math

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.targets import CombineTargetsConfig
from raydistill.runs.context import StageContext
from raydistill.stages.committees import load_committee
from raydistill.stages.predict_targets import batches_from
from raydistill.stages.teachers import fixed_weights
from raydistill.stages.training_stage import load_data
from raydistill.stages.transfer_data import described_transfer_set
from raydistill.targets.combine import EntropyWeights, combine
from raydistill.targets.reader import open_targets
from raydistill.targets.store import MANIFEST, TargetWriter, load_manifest

LEAST_LOG_PROBABILITY = math.log(1e-8)
SAMPLES_AT_ONCE = 500


def combine_targets(config: CombineTargetsConfig, context: StageContext) -> dict[str, float]:
    """Arithmetic mean (a mixture, formed when read), geometric mean (logits of its own), or a committee's log q."""
    metrics = _mean(config, context) if config.committee is None else _fused(config, context)
    manifest = load_manifest(context.folder.path)
    context.payload.update([MANIFEST, *manifest.files])
    return metrics


def _mean(config: CombineTargetsConfig, context: StageContext) -> dict[str, float]:
    members = [context.input(ref).path for ref in config.targets]
    is_entropy = config.weights == "entropy"
    weights = EntropyWeights(config.scale) if is_entropy else fixed_weights(config, config.targets, context)
    return combine(context.folder.path, members, root=context.root, rule=config.rule, weights=weights)


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
    writer = TargetWriter(context.folder.path, description)
    answers = 0
    for batch in batches_from(transfer, writer.rows_done, description.views_stored, SAMPLES_AT_ONCE):
        if context.should_stop():
            raise StageStopped(f"stopped after {writer.rows_done} rows; run the plan again to continue")
        answers_of_generalist = generalist.read(rows[batch.rows], batch.view, device=context.device)
        answer = committee.answer(batch.inputs, answers_of_generalist.logits[:, 0])
        answers += int(answer.active.sum())
        known = writer.rows_done - (batch.view * len(transfer) + int(batch.rows[0]))
        log_probabilities = answer.log_probabilities.clamp(min=LEAST_LOG_PROBABILITY)
        writer.append(batch.ids[known:], log_probabilities[known:])
    writer.close()
    return {
        "targets/rows": float(description.rows * description.views_stored),
        "targets/answers": float(answers),
    }
