"""Generalist, clusters, specialists, committee, student: every stage against what its inputs say."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.runs.files import read_json, sha256_file
from raydistill.targets.reader import open_targets
from raydistill.training import model_files

CLUSTER = [2, 0]
GIVEN = {"stage": "confusion_clusters", "given": [CLUSTER, ["1", "2"]]}


@pytest.fixture
def plan(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """A hasty generalist, specialists for {2, 0} and {1, 2}, what they make together, and a student of that."""
    committee = {"specialists": ["specialists"], "active": 1}
    return {
        "generalist": teacher | {"epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 5e-3}},
        "clusters": GIVEN,
        "specialists": {
            "stage": "train_specialists",
            "generalist": "generalist",
            "clusters": "clusters",
            "epochs": 6,
            "batch_size": 16,
        },
        "committee": {"stage": "evaluate", "models": ["generalist"], "committee": committee},
        "student": student | {"teachers": ["generalist"], "committee": committee},
    }


def only(plan: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: plan[name] for name in names}


def fused_by_hand(generalist: Tensor, specialist: Tensor, cluster: list[int]) -> Tensor:
    """The closed form for one active specialist: inside the mean, outside the generalist's conditional."""
    others = [label for label in range(3) if label not in cluster]
    p, own = generalist.double().softmax(dim=0), specialist.double().softmax(dim=0)
    q = torch.empty(3, dtype=torch.float64)
    q[cluster] = (p[cluster] + own[:-1]) / 2
    q[others] = p[others] / p[others].sum() * (p[others].sum() + own[-1]) / 2
    return q


def test_given_clusters_are_kept_with_their_names(stages: Any, plan: dict[str, Any]) -> None:
    stages.run(only(plan, "clusters"))
    found = read_json(stages.folder("clusters").path / "clusters.json")
    assert found == {"clusters": [[2, 0], [1, 2]], "names": [["2", "0"], ["1", "2"]]}
    assert stages.record("clusters").metrics["clusters/uncovered"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"clusters": 2},
        {"clusters": 2, "split": "train", "views": 2, "augment": [{"name": "shift", "pixels": 1}]},
    ],
)
def test_clusters_are_found_from_the_generalists_predictions(
    stages: Any, plan: dict[str, Any], options: dict[str, Any]
) -> None:
    clusters = {"stage": "confusion_clusters", "generalist": "generalist", "mode": "overlap", "size": 2}
    stages.run({"generalist": plan["generalist"], "clusters": clusters | options})
    found = read_json(stages.folder("clusters").path / "clusters.json")["clusters"]
    assert [len(set(cluster)) for cluster in found] == [2, 2]
    assert 0 < stages.record("clusters").metrics["clusters/confusions_held"] <= 1
    assert {label for cluster in found for label in cluster} == {0, 1, 2}
    assert "similarity.safetensors" in stages.record("clusters").payload


def test_clusters_from_the_validation_split_look_at_no_training_sample(
    stages: Any, plan: dict[str, Any], hide_training_split: Callable[[], None]
) -> None:
    clusters = {"stage": "confusion_clusters", "generalist": "generalist", "clusters": 1}
    stages.write({"generalist": plan["generalist"], "clusters": clusters})
    assert stages.attempt("generalist").status == "done"
    hide_training_split()
    assert stages.attempt("clusters").status == "done"


def test_a_specialist_knows_its_classes_and_the_prior_of_the_data(stages: Any, plan: dict[str, Any]) -> None:
    stages.run(only(plan, "generalist", "clusters", "specialists"))
    specialist = stages.model("specialists.0")
    assert specialist.class_names == ("2", "0", "other classes")
    assert specialist.description["specialist"] == {"classes": CLUSTER, "head": "dustbin"}
    prior = stages.record("specialists.0").metrics["specialist/prior"]
    arrays = np.load(stages.file)
    assert prior == pytest.approx(np.isin(arrays["labels"], CLUSTER).mean(), abs=0.1)
    assert specialist.description["logit_offset"] == [0, 0, pytest.approx(math.log((1 - prior) / prior))]
    assert stages.record("specialists.0").metrics["validation/accuracy"] > 0.6


def test_the_dustbin_is_corrected_for_the_fraction_that_was_drawn_not_the_one_that_was_asked_for(
    stages: Any, plan: dict[str, Any]
) -> None:
    """At 0.999 an epoch has one sample of another class beside all special ones, not a thousandth of them."""
    plan["specialists"] |= {"special_fraction": 0.999, "epochs": 1}
    stages.run(only(plan, "generalist", "clusters", "specialists"))
    labels = stages.plan.task.load().train.labels
    special = int(torch.isin(labels, torch.tensor(CLUSTER)).sum())
    expected = math.log((len(labels) - special) / special * special / 1)
    assert stages.model("specialists.0").description["logit_offset"][-1] == pytest.approx(expected)


def test_specialists_of_all_classes_with_a_full_head_do_not_forget(stages: Any, plan: dict[str, Any]) -> None:
    """With hard labels on the own classes only, and nothing on the others, forgetting is what happens."""
    full = plan["specialists"] | {"head": "full", "epochs": 20}
    chosen = only(plan, "generalist", "clusters") | {"specialists": full}
    chosen |= {"forgetful": full | {"soft_weight": 0.0}}
    stages.run(chosen)
    others = torch.from_numpy(np.load(stages.file)["labels"]) == 1
    kept = stages.logits("specialists.0")[others].softmax(dim=1)[:, 1]
    lost = stages.logits("forgetful.0")[others].softmax(dim=1)[:, 1]
    assert kept.mean() > lost.mean() + 0.1


def test_a_committee_answers_by_the_closed_form_and_asks_only_who_is_called(
    stages: Any, plan: dict[str, Any]
) -> None:
    plan["clusters"] = GIVEN | {"given": [CLUSTER]}
    stages.run(only(plan, "generalist", "clusters", "specialists", "committee", "student"))
    generalist, specialist = stages.logits("generalist"), stages.logits("specialists.0")
    name = next(name for name in stages.graph.nodes if name.endswith("specialists.targets"))
    targets = open_targets(stages.folder(name).path, root=stages.root, expect=None)
    assert targets.description.rule == "kl_fusion"
    stored = targets.read(torch.arange(len(targets.ids))).logits[:, 0].double().exp()
    ids = np.load(stages.file)["ids"].tolist()
    called = 0
    for row, sample in enumerate(targets.ids.tolist()):
        place = ids.index(sample)
        is_called = int(generalist[place].argmax()) in CLUSTER
        called += is_called
        expected = generalist[place].double().softmax(dim=0)
        if is_called:
            expected = fused_by_hand(generalist[place], specialist[place], CLUSTER)
        torch.testing.assert_close(stored[row], expected, atol=2e-3, rtol=2e-2)
    assert 0 < called < len(targets.ids)
    assert stages.record(name).metrics["targets/answers"] == called
    tables = read_json(stages.folder("committee").path / "committee.json")
    assert 0 < tables["cost"]["active"] < 1


def test_specialists_help_a_hasty_generalist(stages: Any, plan: dict[str, Any]) -> None:
    stages.run(plan)
    metrics = stages.record("committee").metrics
    assert metrics["test/accuracy"] > metrics["test/generalist_accuracy"]
    tables = read_json(stages.folder("committee").path / "committee.json")
    assert [row["specialists"] for row in tables["coverage"]] == [1, 2]
    assert stages.record("student").status == "done"


def test_fused_targets_go_on_where_they_were_stopped(stages: Any, plan: dict[str, Any]) -> None:
    plan["student"] |= {"views": 8, "augment": [{"name": "shift", "pixels": 1}]}
    stages.run(plan)
    name = next(name for name in stages.graph.nodes if name.endswith("specialists.targets"))
    expected = checksums(stages.folder(name).path)
    other = stages.elsewhere("again")
    other.write(plan)
    for node in other.graph.nodes:
        if node == name:
            assert other.attempt(node, iter([False] * 2 + [True]).__next__).status == "stopped"
        assert other.attempt(node).status == "done"
    assert checksums(other.folder(name).path) == expected


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.glob("logits*")}


def test_a_specialist_of_other_classes_is_refused(stages: Any, plan: dict[str, Any]) -> None:
    stages.run(only(plan, "generalist", "clusters", "specialists"))
    description = stages.folder("specialists.0").path / model_files.DESCRIPTION
    description.write_text(
        description.read_text().replace('"other classes"', '"0"').replace('"2",\n', '"5",\n', 1)
    )
    record = stages.folder("specialists.0").path / "record.json"
    values = read_json(record)
    values["payload"][model_files.DESCRIPTION] = sha256_file(description)
    record.write_text(json.dumps(values))
    stages.write(plan)
    outcome = stages.attempt("committee")
    assert outcome.status == "failed"
    assert "`specialists.0` and the generalist do not have the same classes" in str(outcome.error)


def test_a_class_without_samples_fails_its_specialist_by_name(stages: Any, plan: dict[str, Any]) -> None:
    plan["specialists"] |= {"transfer": {"omit_classes": [0]}}
    stages.write(only(plan, "generalist", "clusters", "specialists"))
    for name in ("generalist", "clusters"):
        assert stages.attempt(name).status == "done"
    outcome = stages.attempt("specialists.0")
    assert outcome.status == "failed"
    assert "no sample of the transfer set is of `0`" in str(outcome.error)
    assert "the cluster's classes only" in str(stages.attempt("specialists.1").error)
