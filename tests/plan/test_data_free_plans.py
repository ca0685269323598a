"""Data-free distillation in a plan: shards become nodes, and what does not go together is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raydistill.plan.order import Graph

GraphOf = Callable[..., Graph]
PLAN = """\
name: probe
task: {name: mnist}
stages:
  student:
    stage: distill
    student: {name: mlp, widths: [20]}
    teachers: [teacher]
    transfer: {synthesized: images}
    method: {method: hinton, hard_weight: 0, soft_weight: 1}
    epochs: 2
  images: {stage: synthesize, teacher: teacher, statistics: statistics, shards: 3}
  statistics: {stage: record_statistics, teacher: teacher}
  teacher: {stage: train, model: {name: mlp, widths: [30]}, epochs: 1}
"""
OTHER = "  other: {stage: train, model: {name: mlp, widths: [31]}, epochs: 1}\n"


def test_shards_are_nodes_side_by_side_and_all_are_read(graph_of: GraphOf) -> None:
    graph = graph_of(PLAN)
    shards = ("images.0", "images.1", "images.2")
    assert graph.replicas["images"] == shards
    assert all(graph.nodes[name].reads == ("teacher", "statistics") for name in shards)
    assert [graph.nodes[name].config.shard for name in shards] == [0, 1, 2]
    assert len({graph.nodes[name].fingerprint for name in shards}) == 3
    assert set(graph.nodes["teacher.targets"].reads) == {"teacher", *shards}
    assert set(graph.nodes["student"].reads) == {"teacher.targets", *shards}


def test_one_shard_may_be_read_alone(graph_of: GraphOf) -> None:
    graph = graph_of(PLAN, "stages.student.transfer.synthesized=images.1")
    assert graph.nodes["teacher.targets"].reads == ("teacher", "images.1")


def test_real_and_synthesised_samples_have_targets_of_their_own(graph_of: GraphOf) -> None:
    real = "  real: {stage: distill, student: {name: mlp}, teachers: [teacher], epochs: 2}\n"
    graph = graph_of(PLAN + real)
    assert graph.nodes["real"].reads != graph.nodes["student"].reads
    assert sorted(name for name in graph.nodes if name.startswith("teacher.targets")) == [
        "teacher.targets",
        "teacher.targets.2",
    ]


def test_a_transfer_set_of_the_task_has_the_fingerprint_it_always_had(graph_of: GraphOf) -> None:
    """What is not set is no part of an identity: stages made before samples could be synthesised stay valid."""
    identity = graph_of(PLAN).nodes["teacher"].identity
    assert set(identity["config"]["transfer"]) == {"fraction", "omit_classes", "labelled", "seed"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.images.teacher=other"], "are statistics of `teacher`, not of `other`"),
        (["stages.images.objective=all"], "recorded the top one; set its `layers: all`"),
        (["stages.images.statistics=teacher"], "makes no statistics: its kind is `train`"),
        (["stages.student.transfer.synthesized=statistics"], "makes no samples"),
        (["stages.student.transfer.synthesized=imges"], "did you mean `images`"),
        (["stages.images.steps=-1"], "steps"),
        (["stages.statistics.transfer.labelled=false"], "statistics are per class"),
        (["stages.teacher.transfer.synthesized=images"], "in a circle"),
    ],
)
def test_what_does_not_go_together_is_refused(
    refusal: Callable[..., str], overrides: list[str], message: str
) -> None:
    assert message in refusal(PLAN + OTHER, *overrides)


def test_targets_of_other_samples_are_refused(refusal: Callable[..., str]) -> None:
    text = PLAN.replace("teachers: [teacher]", "targets: targets")
    text += "  targets: {stage: predict_targets, teacher: teacher, transfer: {synthesized: images.0}}\n"
    assert "must be about the same samples" in refusal(text)


def test_only_images_are_smoothed(refusal: Callable[..., str], tmp_path: Path) -> None:
    np.savez(f"{tmp_path}/flat.npz", inputs=np.zeros((9, 4), np.float32), labels=np.arange(9) % 3)
    text = PLAN.replace("{name: mnist}", f"{{name: tensors, file: {tmp_path}/flat.npz}}")
    assert "the inputs are no images" in refusal(text, "stages.images.smooth_every=5")
