"""What a plan may say about branches, peers and growth."""

from collections.abc import Callable
from pathlib import Path

import pytest

PLAN = """\
name: probe
task: {name: mnist}
stages:
  small: {stage: train, model: {name: mlp}, epochs: 2}
  large: {stage: train, model: {name: mlp, widths: [900, 900]}, initial: small, grow: {name: net2net}, epochs: 2}
  branches: {stage: train_branches, model: {name: resnet8}, epochs: 2}
  peers: {stage: train_peers, peers: [{name: mlp}, {name: cnn}], epochs: 2}
  exits: {stage: self_distill, model: {name: resnet8}, epochs: 2}
  reusing: {stage: reuse_classifier, student: {name: resnet8}, teacher: exits, epochs: 2}
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.branches.model={name: branched, model: {name: resnet8}}",
            "only a plain network of ours can branch",
        ),
        ("stages.branches.model.name=resnt8", "did you mean `resnet8`"),
        ("stages.branches.branches=1", "2"),
        ("stages.branches.deploy=last", "should be `best`, `first` or `ensemble`"),
        ("stages.branches.transfer={labelled: false}", "learns from labels"),
        ("stages.branches.model.num_classes=3", "3 outputs are too few"),
        ("stages.exits.model={name: my.module:build}", "only a plain network of ours can have exits"),
        ("stages.exits.model.input={size: 32}", "leave `input` out"),
        ("stages.exits.transfer={labelled: false}", "learns from labels"),
        ("stages.exits.soft_weight=1", "should be below 1"),
        (
            "stages.reusing.student={name: my.module:build}",
            "only a plain network of ours can end in another's",
        ),
        ("stages.reusing.student.input={size: 32}", "leave `input` out"),
        ("stages.reusing.teacher=[exits]", "exits"),
        ("stages.reusing.factor=0", "1"),
        ("stages.peers.peers=[]", "at least 1"),
        ("stages.peers.deploy=2", "there are the peers 0 to 1; 2 is none of them"),
        ("stages.peers.initial=small", "every peer starts from weights of its own draw"),
        ("stages.peers.peers.1.num_classes=12", "all peers need the same classes"),
        ("stages.peers.peers.1.name=cnnn", "did you mean `cnn`"),
        ("stages.peers.peers.1={name: no_such.module:build}", "no module `no_such"),
        ("stages.large.initial=null", "name the stage of the smaller network as `initial`"),
        ("stages.large.grow={name: net2nett}", "did you mean `net2net`"),
        ("stages.small.model={name: branched, model: {name: resnt8}}", "did you mean `resnet8`"),
    ],
)
def test_a_mistake_is_answered_with_the_way_out(
    refusal: Callable[..., str], override: str, message: str
) -> None:
    assert message in refusal(PLAN, override)


def test_every_option_of_a_peer_is_part_of_the_stages_identity(graph_of: Callable) -> None:
    one, other = graph_of(PLAN), graph_of(PLAN, "stages.peers.peers.1.widths=[5]")
    assert one.nodes["peers"].fingerprint != other.nodes["peers"].fingerprint
    assert one.nodes["branches"].fingerprint == other.nodes["branches"].fingerprint


def test_the_content_of_a_peers_own_code_is_part_of_the_stages_identity(
    graph_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = set()
    for width in (1, 2):
        (tmp_path / "peers_own.py").write_text(f"WIDTH = {width}\n")
        graph = graph_of(PLAN, "stages.peers.peers.1={name: 'peers_own:build'}")
        found.add(graph.nodes["peers"].fingerprint)
    assert len(found) == 2
