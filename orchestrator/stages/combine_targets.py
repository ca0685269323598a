"""Combine the stored targets of several teachers into one."""

from orchestrator.plan.stage_configs import CombineTargetsConfig
from orchestrator.runs.context import StageContext
from orchestrator.stages.teachers import fixed_weights
from orchestrator.targets.combine import EntropyWeights, combine
from orchestrator.targets.store import MANIFEST, load_manifest


def combine_targets(config: CombineTargetsConfig, context: StageContext) -> dict[str, float]:
    """Arithmetic mean (a mixture, formed when read) or geometric mean (logits of its own)."""
    members = [context.input(ref).path for ref in config.targets]
    is_entropy = config.weights == "entropy"
    weights = EntropyWeights(config.scale) if is_entropy else fixed_weights(config, config.targets, context)
    metrics = combine(context.folder.path, members, root=context.root, rule=config.rule, weights=weights)
    manifest = load_manifest(context.folder.path)
    context.payload.update([MANIFEST, *(shard.file for shard in (*manifest.shards, *manifest.weight_shards))])
    return metrics
