"""What a plan may say about peers that are stages of their own, and what the graph makes of it."""

from collections.abc import Callable

import pytest

from raydistill.plan.order import Graph

PLAN = """\
name: probe
task: {name: mnist}
stages:
  peers: {stage: codistill, model: {name: mlp}, seed: 5, epochs: 3}
  student: {stage: distill, student: {name: mlp}, teachers: [peers], epochs: 2}
"""
GraphOf = Callable[..., Graph]


def test_every_peer_is_a_node_that_waits_for_no_other(graph_of: GraphOf) -> None:
    graph = graph_of(PLAN, "stages.peers.peers=3")
    assert graph.replicas["peers"] == ("peers.0", "peers.1", "peers.2")
    nodes = [graph.nodes[name] for name in graph.replicas["peers"]]
    assert [node.config.seed for node in nodes] == [5, 6, 7]
    assert [node.config.peer for node in nodes] == [0, 1, 2]
    assert [node.reads for node in nodes] == [()] * 3
    assert nodes[1].peers == ("peers.0", "peers.2")
    assert len({node.fingerprint for node in nodes}) == 3


def test_replicas_are_groups_that_do_not_know_each_other(graph_of: GraphOf) -> None:
    graph = graph_of(PLAN, "stages.peers.replicas=3")
    names = graph.replicas["peers"]
    assert len(names) == 6
    assert graph.nodes["peers.2"].peers == ("peers.3",)
    assert [graph.nodes[name].config.peer for name in names] == [0, 1] * 3
    assert [graph.nodes[name].config.group_seed for name in names] == [5, 5, 7, 7, 9, 9]
    alone = graph_of(PLAN)
    for name in ("peers.0", "peers.1"):
        assert graph.nodes[name].fingerprint == alone.nodes[name].fingerprint


def test_a_peer_of_another_group_is_another_model_even_with_the_same_seed(graph_of: GraphOf) -> None:
    """Peer 1 of seed 5 hears the model of seed 5, peer 0 of seed 6 that of seed 7."""
    first, second = graph_of(PLAN), graph_of(PLAN, "stages.peers.seed=6")
    assert first.nodes["peers.1"].config.seed == second.nodes["peers.0"].config.seed
    assert first.nodes["peers.1"].fingerprint != second.nodes["peers.0"].fingerprint


def test_who_needs_one_peer_needs_those_it_learns_from(graph_of: GraphOf) -> None:
    graph = graph_of(PLAN, "stages.student.teachers=[peers.1]")
    assert set(graph.needed_for(["peers.0"]).nodes) == {"peers.0", "peers.1"}
    assert {"peers.0", "peers.1", "student"} <= set(graph.needed_for(["student"]).nodes)


def test_a_student_learns_from_all_peers(graph_of: GraphOf) -> None:
    graph = graph_of(PLAN)
    assert graph.nodes[graph.nodes["student"].config.targets].reads == ("peers.0.targets", "peers.1.targets")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.peers.peers=1", "should be at least 2"),
        ("stages.peers.peers=[{name: mlp}]", "should be a whole number"),
        ("stages.peers.model=[mlp]", "a model is written `mlp` or `{name: mlp}`"),
        ("stages.peers.model.name=mpl", "did you mean `mlp`"),
        ("stages.peers.burn_in=3", "after 3 epochs without peers nothing is left of 3; burn in for less"),
        ("stages.peers.burn_in=-1", "should be at least 0"),
        ("stages.peers.exchange_every=0", "should be at least 1"),
        ("stages.peers.exchange_evry=5", "did you mean `exchange_every`"),
        ("stages.peers.temperature=0", "should be at least 0.001"),
        ("stages.peers.weight=-1", "should be at least 0"),
        ("stages.peers.data=shard", "should be `shared` or `shards`"),
        ("stages.peers.transfer={labelled: false}", "learns from labels"),
        ("stages.peers.initial=peers.0", "stage `peers` reads itself"),
        ("stages.student.teachers=[peers.2]", "`peers` has the replicas `peers.0` to `peers.1`"),
    ],
)
def test_a_mistake_is_answered_with_the_way_out(
    refusal: Callable[..., str], override: str, message: str
) -> None:
    assert message in refusal(PLAN, override)


def test_a_stage_that_follows_another_has_a_copy_per_peer(graph_of: GraphOf) -> None:
    shifted = "{stage: adjust_class_bias, model: peers, classes: [3]}"
    graph = graph_of(PLAN, f"stages.shifted={shifted}")
    assert [graph.nodes[name].reads for name in graph.replicas["shifted"]] == [("peers.0",), ("peers.1",)]
