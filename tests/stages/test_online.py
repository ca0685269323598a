"""Branches, peers and grown networks through whole stages: what is trained, what is deployed, and how it fails."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydistill.errors import PlanError
from raydistill.models.build import build_model
from raydistill.stages import train_branches
from raydistill.stages.model_probe import check_features
from raydistill.training import loop

CNN = {"name": "cnn", "widths": [4, 6], "batch_norm": True}
MLP = {"name": "mlp", "widths": [8], "dropout": 0.5}
SHARED = {"epochs": 2, "batch_size": 16}
BRANCHES = {"stage": "train_branches", "model": CNN, "ramp_epochs": 1, **SHARED}
PEERS = {"stage": "train_peers", "peers": [CNN, MLP], **SHARED}
EXITS = {"stage": "self_distill", "model": CNN, **SHARED}


def weights(stages: Any, name: str) -> dict[str, torch.Tensor]:
    return load_file(stages.folder(name).path / "model.safetensors")


def test_the_deployed_branch_is_the_plain_architecture(stages: Any) -> None:
    stages.run({"one": BRANCHES})
    plain = build_model("cnn", {"widths": [4, 6], "batch_norm": True}, (1, 8, 8), 3)
    plain.load_state_dict(weights(stages, "one"), strict=True)
    record = stages.record("one")
    assert record.parameters == sum(parameter.numel() for parameter in plain.parameters())
    assert stages.model("one").description["model"]["name"] == "cnn"


def test_the_same_training_deploys_the_best_the_first_or_all_branches(stages: Any) -> None:
    plan = {deploy: BRANCHES | {"deploy": deploy, "epochs": 3} for deploy in ("best", "first", "ensemble")}
    stages.run(plan)
    whole = stages.model("ensemble")
    labels = torch.from_numpy(np.load(stages.file)["labels"])
    inputs = torch.from_numpy(np.load(stages.file)["inputs"])
    best = int(stages.record("best").metrics["deployed"])
    for name, branch in (("best", best), ("first", 0)):
        alone = whole.model.plain(branch)((inputs - whole.normalisation.mean) / whole.normalisation.std)
        assert torch.equal(stages.logits(name), alone)
    metrics = stages.record("ensemble").metrics
    assert metrics["test/accuracy"] == metrics["test/ensemble_accuracy"]
    assert metrics["test/ensemble_accuracy"] == stages.record("best").metrics["test/ensemble_accuracy"]
    assert stages.record("first").metrics["test/accuracy"] == metrics["test/branch0_accuracy"]
    accuracies = [metrics[f"validation/branch{index}_accuracy"] for index in range(3)]
    assert accuracies[best] == max(accuracies)
    assert (whole.logits(inputs).argmax(dim=1) == labels).double().mean() > 0.6


def test_the_first_branch_begins_as_the_plain_network_of_its_seed(stages: Any) -> None:
    still = {"optimizer": {"name": "sgd", "learning_rate": 1e-30}}
    plain = {"stage": "train", "model": CNN, **SHARED, **still}
    stages.run({"plain": plain, "one": BRANCHES | still | {"deploy": "first"}, "exits": EXITS | still})
    for name in ("one", "exits"):
        torch.testing.assert_close(weights(stages, name), weights(stages, "plain"))


def test_every_parameter_of_branches_and_exits_has_a_gradient_in_every_step(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As data-parallel training asks; also while the ramp is all but 0."""
    without: list[str] = []
    step = loop.Training._note_step

    def look(training: Any, *arguments: Any) -> None:
        step(training, *arguments)
        names = dict(training.learner.named_parameters())
        without.extend(name for name, parameter in names.items() if parameter.grad is None)
        assert len(names) > 15

    monkeypatch.setattr(loop.Training, "_note_step", look)
    stages.run({"one": BRANCHES | {"ramp_epochs": 10**6, "epochs": 1}, "exits": EXITS})
    assert without == []


@pytest.mark.parametrize("stage", [BRANCHES, PEERS, EXITS], ids=["branches", "peers", "exits"])
@pytest.mark.parametrize("steps", [3, 14])
def test_stopping_and_resuming_equals_not_stopping(stages: Any, stage: dict[str, Any], steps: int) -> None:
    plan = {"online": stage}
    whole = stages.run(plan)
    other = stages.elsewhere("again")
    other.write(plan)
    assert other.attempt("online", iter([False] * (steps - 1) + [True]).__next__).status == "stopped"
    assert other.attempt("online").status == "done"
    assert other.record("online").payload == whole.record("online").payload
    assert other.record("online").metrics == whole.record("online").metrics
    assert other.metrics("online") == whole.metrics("online")


@pytest.mark.parametrize("stage", [BRANCHES, PEERS, EXITS], ids=["branches", "peers", "exits"])
def test_losses_are_finite_under_bfloat16_and_fall(stages: Any, stage: dict[str, Any]) -> None:
    stages.run({"online": stage | {"precision": "bfloat16", "epochs": 5}})
    losses = [line["train/loss"] for line in stages.metrics("online")]
    assert losses[-1] < losses[0]


def test_a_batch_of_one_sample_is_no_trouble(stages: Any) -> None:
    """108 training samples: batches of 107 leave one."""
    few = {"batch_size": 107}
    stages.run({"one": BRANCHES | few, "peers": PEERS | few, "exits": EXITS | few})
    assert all(
        value.isfinite().all() for name in ("one", "exits") for value in weights(stages, name).values()
    )


def test_a_student_may_learn_from_all_branches(stages: Any, student: dict[str, Any]) -> None:
    stages.run({"one": BRANCHES | {"deploy": "ensemble"}, "student": student | {"teachers": ["one"]}})
    assert stages.record("student").status == "done"


def test_a_single_peer_is_bit_for_bit_a_supervised_model(stages: Any) -> None:
    shared = SHARED | {"seed": 3, "label_smoothing": 0.1}
    stages.run(
        {
            "plain": {"stage": "train", "model": MLP, **shared},
            "peers": {"stage": "train_peers", "peers": [MLP], **shared},
        }
    )
    assert (
        stages.record("peers").payload["model.safetensors"]
        == stages.record("plain").payload["model.safetensors"]
    )
    assert stages.metrics("peers") == stages.metrics("plain")


def test_peers_without_a_weight_train_as_if_alone(stages: Any) -> None:
    """Sums of losses and one optimizer over all peers change nothing for each of them."""
    smooth = {"name": "mlp", "widths": [8]}  # dropout would draw other masks beside a second peer
    adam = SHARED | {"optimizer": {"name": "adamw", "weight_decay": 0.1}}
    pair = {"stage": "train_peers", "peers": [smooth, CNN], "deploy": 0, **adam}
    stages.run(
        {
            "alone": {"stage": "train", "model": smooth, **adam},
            "ignoring": pair | {"weight": 0},
            "teaching": pair,
        }
    )
    alone, ignoring, teaching = (weights(stages, name) for name in ("alone", "ignoring", "teaching"))
    assert all(torch.equal(alone[key], ignoring[key]) for key in alone)
    assert not torch.equal(alone["classifier.weight"], teaching["classifier.weight"])


def test_peers_of_one_architecture_do_not_begin_alike(stages: Any) -> None:
    peers = {"stage": "train_peers", "peers": [CNN, CNN], **SHARED}
    stages.run({"first": peers | {"deploy": 0}, "second": peers | {"deploy": 1}})
    one, other = weights(stages, "first"), weights(stages, "second")
    assert not torch.allclose(one["classifier.weight"], other["classifier.weight"], atol=1e-2)
    metrics = stages.record("second").metrics
    assert metrics["test/accuracy"] == metrics["test/peer1_accuracy"]
    assert {"validation/ensemble_accuracy", "test/ensemble_accuracy", "test/peer0_accuracy"} <= metrics.keys()


def test_the_best_peer_is_the_best_on_validation(stages: Any) -> None:
    stages.run({"peers": PEERS | {"epochs": 4}})
    metrics = stages.record("peers").metrics
    accuracies = [metrics[f"validation/peer{index}_accuracy"] for index in range(2)]
    best = int(metrics["deployed"])
    assert metrics["validation/accuracy"] == accuracies[best] == max(accuracies)
    assert stages.model("peers").description["model"]["name"] == ["cnn", "mlp"][best]


@pytest.mark.parametrize("stage", [BRANCHES, PEERS], ids=["branches", "peers"])
def test_without_validation_nobody_is_the_best(stages: Any, stage: dict[str, Any]) -> None:
    stages.task = {"validation_fraction": 0}
    stages.write({"online": stage})
    assert "`deploy: best` needs validation samples" in str(stages.attempt("online").error)


@pytest.mark.parametrize("model", [MLP, {"name": "cnn", "widths": [4]}])
def test_a_network_that_cannot_branch_fails_by_name(stages: Any, model: dict[str, Any]) -> None:
    stages.write({"one": BRANCHES | {"model": model}})
    error = str(stages.attempt("one").error)
    assert f"model `{model['name']}`: a network of" in error
    assert "has no trunk" in error


def test_a_grown_model_begins_as_the_smaller_one(stages: Any) -> None:
    large = CNN | {"widths": [7, 9], "convolutions": [2, 2]}
    still = {"optimizer": {"name": "sgd", "learning_rate": 1e-30}, "initial": "small"}
    grown = {"stage": "train", "model": large, **SHARED, **still}
    frozen = {"stage": "train", "model": {"name": "mlp", "widths": [30, 20]}, **SHARED, **still}
    exact = {"grow": {"name": "net2net", "noise": 0}}
    stages.run(
        {
            "small": {"stage": "train", "model": {"name": "mlp", "widths": [8]}, **SHARED},
            "large": frozen | exact,
            "small_cnn": {"stage": "train", "model": CNN, "epochs": 3, "batch_size": 16},
            "large_cnn": grown | exact | {"initial": "small_cnn", "epochs": 1},
        }
    )
    torch.testing.assert_close(stages.logits("large"), stages.logits("small"), rtol=1e-5, atol=1e-5)
    # Its batch norms went on to follow the batches.
    right = (
        (stages.logits("large_cnn").argmax(dim=1) == stages.logits("small_cnn").argmax(dim=1)).double().mean()
    )
    assert right > 0.9


def test_what_cannot_grow_fails_by_name(stages: Any, teacher: dict[str, Any]) -> None:
    grown = teacher | {"model": CNN, "initial": "teacher", "grow": {"name": "net2net"}}
    stages.write({"teacher": teacher, "large": grown})
    assert stages.attempt("teacher").status == "done"
    error = str(stages.attempt("large").error)
    assert error.startswith("`teacher` cannot grow into `cnn`: the larger network has no `hidden1.linear`")


def test_branches_are_not_drawn_alike(stages: Any) -> None:
    graph = stages.write({"one": BRANCHES})
    context = type("Context", (), {"task": stages.plan.task, "device": "cpu", "warn": print})()
    data = stages.plan.task.load()
    model = train_branches.build_branches(data, graph.nodes["one"].config, context)
    first, second, _ = (branch.classifier.weight for branch in model.branches)
    assert not torch.equal(first, second)


def test_what_is_stored_of_a_network_with_exits_is_the_plain_one(
    stages: Any, student: dict[str, Any]
) -> None:
    stages.run({"exits": EXITS | {"epochs": 4}, "student": student | {"teachers": ["exits"]}})
    plain = build_model("cnn", {"widths": [4, 6], "batch_norm": True}, (1, 8, 8), 3)
    plain.load_state_dict(weights(stages, "exits"), strict=True)
    record = stages.record("exits")
    assert record.parameters == sum(parameter.numel() for parameter in plain.parameters())
    assert record.costs["trained_parameters"] > record.parameters
    for split in ("validation", "test"):
        assert record.metrics[f"{split}/accuracy"] == record.metrics[f"{split}/last_exit_accuracy"]
        assert f"{split}/exit1_accuracy" in record.metrics
    exits = [line["train/loss/exits"] for line in stages.metrics("exits")]
    assert exits[-1] < exits[0]


def test_without_a_stage_for_an_exit_training_does_not_begin(stages: Any) -> None:
    stages.write({"exits": EXITS | {"model": {"name": "cnn", "widths": [4]}}})
    error = str(stages.attempt("exits").error)
    assert error.startswith("model `cnn`: a network of 1 stages has none before its last one")
    with pytest.raises(PlanError, match=r"stages.exits.model: a network of 1 stages"):
        check_features(stages.graph, stages.plan)
