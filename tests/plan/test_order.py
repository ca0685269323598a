"""From a plan to the graph: what is inserted, what is shared, and what reads what."""

from collections.abc import Iterable
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.plan.fingerprint import differences
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan

Stages = dict[str, dict[str, Any]]


def order(stages: Stages) -> Graph:
    return order_stages(Plan.model_validate({"name": "probe", "task": {"name": "mnist"}, "stages": stages}))


def train(width: int = 30, **settings: Any) -> dict[str, Any]:
    return {"stage": "train", "model": {"name": "mlp", "widths": [width]}, "epochs": 2, **settings}


def distill(*teachers: str, width: int = 20, **settings: Any) -> dict[str, Any]:
    source = {"teachers": list(teachers)} if teachers else {}
    student = {"name": "mlp", "widths": [width]}
    return {"stage": "distill", "student": student, "epochs": 2, **source, **settings}


def reads(graph: Graph) -> dict[str, tuple[str, ...]]:
    return {name: node.reads for name, node in graph.nodes.items()}


def prints(graph: Graph) -> dict[str, str]:
    return {name: node.fingerprint for name, node in graph.nodes.items()}


def test_replicas_become_nodes_with_their_own_seeds() -> None:
    graph = order({"teacher": train(replicas=3, seed=7)})
    assert graph.replicas == {"teacher": ("teacher.0", "teacher.1", "teacher.2")}
    assert [node.config.seed for node in graph.nodes.values()] == [7, 8, 9]
    assert {node.stage for node in graph.nodes.values()} == {"teacher"}
    assert len(set(prints(graph).values())) == 3


def test_one_teacher_gets_one_stage_of_targets() -> None:
    graph = order({"teacher": train(), "student": distill("teacher")})
    assert reads(graph) == {
        "teacher": (),
        "teacher.targets": ("teacher",),
        "student": ("teacher.targets",),
    }
    inserted = graph.nodes["teacher.targets"]
    assert inserted.inserted
    assert (inserted.kind, inserted.stage) == ("predict_targets", "teacher.targets")
    assert not graph.nodes["student"].inserted


def test_several_teachers_get_a_stage_that_combines_their_targets() -> None:
    graph = order(
        {
            "a": train(replicas=2),
            "b": train(40),
            "student": distill("a", "b", combine={"rule": "geometric", "weights": [1, 2, 3]}),
        }
    )
    assert graph.nodes["student"].reads == ("a+b.targets",)
    combined = graph.nodes["a+b.targets"]
    assert combined.kind == "combine_targets"
    assert combined.reads == ("a.0.targets", "a.1.targets", "b.targets")
    assert (combined.config.rule, combined.config.weights) == ("geometric", (1, 2, 3))


def test_a_replica_can_be_read_alone() -> None:
    graph = order({"teacher": train(replicas=2), "student": distill("teacher.1")})
    assert reads(graph)["student"] == ("teacher.1.targets",)
    assert "teacher.0.targets" not in graph.nodes


def test_students_of_one_transfer_set_share_the_targets() -> None:
    hard = {"method": "hinton", "hard_weight": 0.1}
    soft = {"method": "hinton", "hard_weight": 0}
    graph = order(
        {
            "teacher": train(),
            "first": distill("teacher", replicas=2, method=hard),
            "second": distill("teacher", width=10, method=soft, transfer={"labelled": False}),
        }
    )
    assert [name for name, node in graph.nodes.items() if node.inserted] == ["teacher.targets"]
    assert {reads(graph)[name] for name in ("first.0", "first.1", "second")} == {("teacher.targets",)}


def test_another_transfer_set_gets_targets_of_its_own() -> None:
    graph = order(
        {
            "teacher": train(),
            "all": distill("teacher"),
            "tenth": distill("teacher", transfer={"fraction": 0.1}),
        }
    )
    assert reads(graph)["all"] == ("teacher.targets",)
    assert reads(graph)["tenth"] == ("teacher.targets.2",)
    assert graph.nodes["teacher.targets.2"].config.transfer.fraction == 0.1


def test_stored_views_are_predicted_on_what_the_student_will_see() -> None:
    views = {"augment": [{"name": "flip"}], "views": 4, "view_seed": 3}
    graph = order({"teacher": train(), "student": distill("teacher", **views)})
    student, targets = graph.nodes["student"].config, graph.nodes["teacher.targets"].config
    assert (targets.augment, targets.views, targets.view_seed) == (student.augment, 4, 3)


def test_targets_that_the_user_wrote_are_not_inserted_again_wherever_they_stand() -> None:
    written = {"stage": "predict_targets", "teacher": "teacher"}
    for stages in (
        {"teacher": train(), "soft": written, "student": distill("teacher")},
        {"student": distill("teacher"), "soft": written, "teacher": train()},
    ):
        graph = order(stages)
        assert set(graph.nodes) == {"teacher", "soft", "student"}
        assert reads(graph)["student"] == ("soft",)


def test_a_student_of_named_targets_is_the_student_of_inserted_ones() -> None:
    named = order(
        {
            "teacher": train(),
            "soft": {"stage": "predict_targets", "teacher": "teacher"},
            "student": distill(targets="soft"),
        }
    )
    inserted = order({"teacher": train(), "student": distill("teacher")})
    assert named.nodes["student"].fingerprint == inserted.nodes["student"].fingerprint


def test_live_teachers_are_read_directly() -> None:
    graph = order({"teacher": train(replicas=2), "student": distill("teacher", mode="live")})
    assert reads(graph) == {"teacher.0": (), "teacher.1": (), "student": ("teacher.0", "teacher.1")}


def test_inserted_targets_take_the_resources_of_one_worker_of_the_teacher() -> None:
    graph = order({"teacher": train(resources={"workers": 4, "gpus": 0.5}), "student": distill("teacher")})
    resources = graph.nodes["teacher.targets"].config.resources
    assert (resources.workers, resources.gpus) == (1, 0.5)


def test_an_evaluation_reads_every_replica() -> None:
    graph = order({"teacher": train(replicas=3), "judge": {"stage": "evaluate", "models": ["teacher"]}})
    assert reads(graph)["judge"] == ("teacher.0", "teacher.1", "teacher.2")


def test_only_what_a_stage_needs_is_kept() -> None:
    graph = order(
        {
            "teacher": train(replicas=2),
            "baseline": train(20),
            "student": distill("teacher.0", replicas=2),
            "judge": {"stage": "evaluate", "models": ["student", "baseline"]},
        }
    )
    needed = {name: set(graph.needed_for([name]).nodes) for name in ("student", "student.1", "teacher")}
    assert needed["student"] == {"teacher.0", "teacher.0.targets", "student.0", "student.1"}
    assert needed["student.1"] == {"teacher.0", "teacher.0.targets", "student.1"}
    assert needed["teacher"] == {"teacher.0", "teacher.1"}
    assert list(graph.needed_for(["judge"]).nodes) == [name for name in graph.nodes if name != "teacher.1"]


# Teacher assistants: the invariants of Mirzadeh et al. (arXiv 1902.03393) that a graph can show.


def chained(widths: Iterable[int]) -> Stages:
    """A teacher of 100 units, assistants of `widths` units, a student of 10: each taught by the one before."""
    stages: Stages = {"teacher": train(100)}
    for width in [*widths, 10]:
        stages[f"taught-{width}"] = distill(list(stages)[-1], width=width)
    return stages


def trained(graph: Graph) -> set[str]:
    return {node.fingerprint for node in graph.nodes.values() if node.kind in ("train", "distill")}


@pytest.mark.parametrize("count", range(5))
def test_all_chains_over_n_assistants_cost_2_to_the_n_plus_1_trainings(count: int) -> None:
    sizes = [90 - 10 * index for index in range(count)]
    chains = list(chain.from_iterable(combinations(sizes, length) for length in range(count + 1)))
    assert len(chains) == 2**count
    runs = set().union(*(trained(order(chained(widths))) for widths in chains))
    assert len(runs) == 2 ** (count + 1)


def test_a_chain_without_assistants_is_plain_distillation() -> None:
    direct = order({"teacher": train(100), "student": distill("teacher", width=10)})
    assert trained(order(chained([]))) == trained(direct)


def test_a_student_reads_its_last_assistant_and_nobody_above() -> None:
    graph = order(chained([80, 60]))
    assert graph.needed_for(["taught-10"]).nodes.keys() == graph.nodes.keys()
    assert reads(graph)["taught-10"] == ("taught-60.targets",)
    assert reads(graph)["taught-60.targets"] == ("taught-60",)


def test_another_first_teacher_reaches_the_student_through_its_assistant_only() -> None:
    first, second = order(chained([50])), order(chained([50]) | {"teacher": train(100, seed=1)})
    before, after = (graph.nodes["taught-10"].identity for graph in (first, second))
    changes = list(differences(before, after))
    assert len(changes) == 1
    assert changes[0].startswith("config.targets: ")
    assistant = {name for name in first.nodes if first.nodes[name].fingerprint in changes[0]}
    assert assistant == {"taught-50.targets"}


# Any graph


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Stages, Stages]:
    """Stages of a random graph, and the same ones in another order."""
    stages: Stages = {}
    for index in range(draw(st.integers(1, 7))):
        models = list(stages)
        teachers = draw(st.lists(st.sampled_from(models), unique=True, max_size=3)) if models else []
        common = {"seed": 10 * index, "replicas": draw(st.integers(1, 3))}
        if teachers:
            mode = draw(st.sampled_from(["live", "stored"]))
            fraction = draw(st.sampled_from([0.5, 1.0]))
            stages[f"s{index}"] = distill(*teachers, mode=mode, transfer={"fraction": fraction}, **common)
        else:
            stages[f"s{index}"] = train(**common)
    names = draw(st.permutations(list(stages)))
    return stages, {name: stages[name] for name in names}


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_every_node_comes_after_what_it_reads_in_whatever_order_the_stages_are_written(
    graph: tuple[Stages, Stages],
) -> None:
    as_drawn, shuffled = order(graph[0]), order(graph[1])
    for ordered in (as_drawn, shuffled):
        done: set[str] = set()
        for name, node in ordered.nodes.items():
            assert set(node.reads) <= done
            done.add(name)
        assert len(set(prints(ordered).values())) == len(ordered.nodes)
    assert sorted(prints(as_drawn).values()) == sorted(prints(shuffled).values())
    written = [name for name, node in as_drawn.nodes.items() if not node.inserted]
    assert [prints(shuffled)[name] for name in written] == [prints(as_drawn)[name] for name in written]


def specialised(clusters: dict[str, Any], **student: Any) -> Stages:
    return {
        "generalist": train(),
        "clusters": {"stage": "confusion_clusters", **clusters},
        "specialists": {
            "stage": "train_specialists",
            "generalist": "generalist",
            "clusters": "clusters",
            "epochs": 2,
        },
        "student": distill("generalist", committee={"specialists": ["specialists"], "active": 2}, **student),
    }


def test_every_cluster_gets_a_specialist_and_the_committee_its_targets() -> None:
    graph = order(specialised({"generalist": "generalist", "clusters": 3}))
    names = tuple(f"specialists.{index}" for index in range(3))
    assert reads(graph) == {
        "generalist": (),
        "clusters": ("generalist",),
        **dict.fromkeys(names, ("generalist", "clusters")),
        "generalist.targets": ("generalist",),
        "generalist+specialists.targets": ("generalist.targets", *names),
        "student": ("generalist+specialists.targets",),
    }
    assert [graph.nodes[name].config.cluster for name in names] == [0, 1, 2]
    assert len({graph.nodes[name].fingerprint for name in names}) == 3
    fused = graph.nodes["generalist+specialists.targets"]
    assert (fused.kind, fused.inserted) == ("combine_targets", True)
    assert (fused.config.committee.active, fused.config.committee.specialists) == (2, names)


def test_given_clusters_need_no_generalist_and_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "clusters.json"
    file.write_text('[[1, 7], ["3", 5, 8]]')
    graph = order(specialised({"given": str(file)}))
    assert reads(graph)["clusters"] == ()
    assert graph.nodes["clusters"].config.given == ((1, 7), ("3", 5, 8))
    assert graph.replicas["specialists"] == ("specialists.0", "specialists.1")
    written_out = order(specialised({"given": [[1, 7], ["3", 5, 8]]}))
    assert prints(graph) == prints(written_out)


def test_a_committee_of_other_specialists_is_another_student() -> None:
    clusters = {"given": [[1, 7], [3, 5], [0, 9]]}
    everybody = order(specialised(clusters))
    some = specialised(clusters)
    some["student"]["committee"] = {"specialists": ["specialists.0", "specialists.2"], "active": 2}
    assert reads(order(some))["generalist+specialists.targets"] == (
        "generalist.targets",
        "specialists.0",
        "specialists.2",
    )
    assert prints(order(some))["student"] != prints(everybody)["student"]
    assert prints(order(some))["specialists.2"] == prints(everybody)["specialists.2"]


def test_a_student_of_a_committee_sees_the_pixels_of_its_generalist() -> None:
    views = {"views": 2, "augment": [{"name": "shift", "pixels": 1}]}
    graph = order(specialised({"given": [[1, 7]]}, **views))
    assert graph.nodes["generalist.targets"].config.views == 2
    targets = graph.nodes["student"].config.targets
    stages = specialised({"given": [[1, 7]]}, **views)
    stages["targets"] = {"stage": "predict_targets", "teacher": "generalist", **views}
    stages["fused"] = {
        "stage": "combine_targets",
        "targets": ["targets"],
        "committee": {"specialists": ["specialists"], "active": 2},
    }
    stages["student"] = distill(targets="fused", **views)
    written_out = order(stages)
    assert prints(written_out)["fused"] == graph.nodes[targets].fingerprint
    assert prints(written_out)["student"] == prints(graph)["student"]


def test_every_replica_of_a_model_is_adjusted() -> None:
    adjusted = {"stage": "adjust_class_bias", "model": "teacher", "classes": [3]}
    graph = order(
        {"teacher": train(replicas=2), "adjusted": adjusted, "one": {**adjusted, "model": "teacher.1"}}
    )
    assert graph.replicas["adjusted"] == ("adjusted.0", "adjusted.1")
    assert reads(graph)["adjusted.1"] == reads(graph)["one"] == ("teacher.1",)
    assert reads(order({"teacher": train(), "adjusted": adjusted}))["adjusted"] == ("teacher",)


def test_as_many_replicas_go_on_each_from_the_one_of_its_number() -> None:
    begun = {"begun": train(replicas=2)}
    zipped = order(begun | {"going": train(initial="begun", replicas=2)})
    assert reads(zipped) | {"begun.0": (), "begun.1": ()} == reads(zipped)
    assert reads(zipped)["going.1"] == ("begun.1",)
    named = order(begun | {"first": train(initial="begun.0"), "second": train(initial="begun.1", seed=1)})
    assert prints(zipped)["going.0"] == prints(named)["first"]
    assert prints(zipped)["going.1"] == prints(named)["second"]
    same = order(begun | {"going": train(initial="begun.1", replicas=2)})
    assert reads(same)["going.0"] == reads(same)["going.1"] == ("begun.1",)
