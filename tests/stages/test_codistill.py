"""Co-distillation: its loss against slow loops, its limits, and peers that are late, damaged or of another kind."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raydistill.errors import PlanError, StageError
from raydistill.execution.local_backend import LocalBackend
from raydistill.kinds.online import CodistillConfig, TrainPeersConfig
from raydistill.methods.codistillation import Codistillation, mean_divergence
from raydistill.methods.mutual import Mutual
from raydistill.models.build import build_model
from raydistill.models.taps import Output
from raydistill.runs.context import StageContext, claim_attempt
from raydistill.runs.folder import StageFolder
from raydistill.stages.codistill import shard_of
from raydistill.targets.mixing import TeacherTargets
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TensorSplit
from raydistill.training.data import Batch, TransferSet
from raydistill.training.exchange import PUBLISHED, Exchange, publish, read_published
from raydistill.training.method import Method

MLP = {"name": "mlp", "widths": [8], "dropout": 0.5}
CNN = {"name": "cnn", "widths": [4, 6], "batch_norm": True}
SHARED = {"epochs": 2, "batch_size": 16, "augment": [{"name": "shift", "pixels": 1}]}
PEERS = {"stage": "codistill", "model": MLP, "burn_in": 0, "exchange_every": 3, **SHARED}
LABELS = torch.tensor([2, 0, 1, 1, 0])


def config_of(**options: Any) -> CodistillConfig:
    return CodistillConfig.model_validate(PEERS | options)


def context_of(name: str, root: Path, names: tuple[str, ...], attempt: str = "") -> StageContext:
    (root / name).mkdir(parents=True, exist_ok=True)
    peers = {other: other for other in names if other != name}
    return StageContext(name, StageFolder(root / name), root, Mnist(), peers=peers, attempt=attempt)


def network(seed: int = 0) -> nn.Module:
    """Something with weights and with buffers: input (B, 4), logits (B, 3)."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def perceptron(seed: int) -> nn.Module:
    """It computes the same in train and eval mode."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def batch_of(inputs: Tensor) -> Batch:
    rows = torch.arange(len(inputs))
    return Batch(inputs, LABELS[: len(inputs)], rows, rows)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(stages: Any, name: str) -> dict[str, Tensor]:
    return load_file(stages.folder(name).path / "model.safetensors")


def log_of(stages: Any, name: str) -> str:
    text: str = (stages.folder(name).path / "log.txt").read_text()
    return text


# The loss


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("size", "count", "temperature"), [(5, 1, 1.0), (4, 3, 2.5), (1, 2, 4.0)])
def test_loss_and_gradient_are_those_of_slow_loops(
    size: int, count: int, temperature: float, tmp_path: Path
) -> None:
    student, peers = (3 * draw(size, 3)).requires_grad_(), 3 * draw(size, count, 3, seed=1)
    config = config_of(weight=0.7, temperature=temperature, peers=count + 1)
    method = Codistillation(config, Exchange(perceptron(0), context_of("one", tmp_path, ())), 0)
    targets = TeacherTargets(peers, torch.ones(size, count))
    terms = method.losses(Output(student, {}), targets, batch_of(student.detach()))
    gradient = torch.autograd.grad(terms["hard"] + terms["soft"], student)[0]

    hard = soft = 0.0
    slope = torch.zeros(size, 3, dtype=torch.float64)
    for b, z in enumerate(student.detach().double().tolist()):
        one, q = softmax(z, 1.0), softmax(z, temperature)
        hard -= math.log(one[LABELS[b]]) / size
        for c in range(3):
            slope[b, c] += (one[c] - float(LABELS[b] == c)) / size
        for v in peers[b].double().tolist():
            p = softmax(v, temperature)
            for c in range(3):
                soft += 0.7 * temperature**2 * p[c] * math.log(p[c] / q[c]) / size / count
                slope[b, c] += 0.7 * temperature * (q[c] - p[c]) / size / count
    assert terms["hard"].item() == pytest.approx(hard, rel=1e-5)
    assert terms["soft"].item() == pytest.approx(soft, rel=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-6)


def test_nobody_to_hear_costs_nothing_and_teaches_nothing() -> None:
    student = draw(4, 3).requires_grad_()
    distance = mean_divergence(student, torch.zeros(4, 0, 0), 2.0)
    assert distance == 0
    assert not distance.requires_grad


def test_peers_that_agree_cost_nothing_and_learn_nothing_from_each_other() -> None:
    student, peers = draw(4, 3).requires_grad_(), draw(4, 3).unsqueeze(1).requires_grad_()
    distance = mean_divergence(student, peers + 5, 3.0)
    gradient = torch.autograd.grad(distance, (student, peers), allow_unused=True)
    assert distance.item() == pytest.approx(0, abs=1e-6)
    assert gradient[0].abs().max() < 1e-6
    assert gradient[1] is None


@pytest.mark.parametrize("count", [2, 3])
def test_without_staleness_and_on_shared_data_it_is_mutual_learning(count: int, tmp_path: Path) -> None:
    """In lockstep, exchanging at every step; the nets have neither dropout nor batch norms."""
    names = tuple(f"peer{index}" for index in range(count))
    apart = [perceptron(seed) for seed in range(count)]
    together = copy.deepcopy(apart)
    options = {"temperature": 2.0, "weight": 0.8}
    config = config_of(peers=count, exchange_every=1, **options)
    methods = [
        Codistillation(config, Exchange(model, context_of(name, tmp_path, names)), 0)
        for name, model in zip(names, apart, strict=True)
    ]
    mutual = Mutual(
        TrainPeersConfig.model_validate(
            {"stage": "train_peers", "peers": [MLP] * count, "epochs": 1, **options}
        )
    )
    sgd = [torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9) for model in apart]
    joint = torch.optim.SGD([p for model in together for p in model.parameters()], lr=0.3, momentum=0.9)
    for step in range(6):
        batch = batch_of(draw(5, 4, seed=step))
        for method in [*methods, *methods]:  # all publish, and then all look once more
            method.at_step(step)
        for model, method, optimizer in zip(apart, methods, sgd, strict=True):
            take_step(model, method, optimizer, batch)
        outputs = {name: model(batch.inputs) for name, model in zip(names, together, strict=True)}
        terms = mutual.losses(Output(outputs["peer0"], outputs), None, batch)
        joint.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        joint.step()
    for one, other in zip(apart, together, strict=True):
        for own, mutual_own in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(own, mutual_own, rtol=1e-5, atol=1e-6)
    for method in methods:
        assert method.summary() == {"peers_heard": count - 1, "staleness": 0}


def take_step(model: nn.Module, method: Codistillation, optimizer: Any, batch: Batch) -> None:
    terms = method.losses(Output(model(batch.inputs), {}), method.teach(batch), batch)
    optimizer.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()


# What is exchanged


def test_a_copy_has_the_buffers_too_and_answers_in_eval_mode(tmp_path: Path) -> None:
    names = ("one", "other")
    one, other = network(0).train(), network(1).train()
    for seed in range(3):
        one(2 + draw(5, 4, seed=seed))  # moves the running statistics
    theirs, ours = (
        Exchange(model, context_of(name, tmp_path, names))
        for name, model in zip(names, (one, other), strict=True)
    )
    theirs.publish(7)
    ours.look()
    assert ours.steps == {"one": 7}
    inputs = draw(5, 4, seed=9)
    copied = ours.copies["one"]
    assert all(torch.equal(value, copied.state_dict()[key]) for key, value in one.state_dict().items())
    assert torch.equal(ours.predictions(inputs)[:, 0], copy.deepcopy(one).eval()(inputs))
    assert not copied.training
    assert not any(parameter.requires_grad for parameter in copied.parameters())


def test_copies_are_private_and_part_of_no_optimizer_and_no_checkpoint(tmp_path: Path) -> None:
    names = ("one", "other")
    model = perceptron(0)
    exchange = Exchange(model, context_of("one", tmp_path, names))
    (tmp_path / "other").mkdir()
    publish(tmp_path / "other" / PUBLISHED, perceptron(1), 0)
    method = Codistillation(config_of(), exchange, 0)
    method.at_step(0)
    before = copy.deepcopy(exchange.copies["other"].state_dict())
    take_step(model, method, torch.optim.SGD(model.parameters(), lr=1.0), batch_of(draw(5, 4)))
    assert all(
        torch.equal(value, before[key]) for key, value in exchange.copies["other"].state_dict().items()
    )
    assert list(method.parameters()) == []
    assert set(method.state_dict()) == {"steps", "heard", "staleness"}


def test_tied_weights_are_published(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    publish(tmp_path / PUBLISHED, model, 4)
    step, state = read_published(tmp_path / PUBLISHED)
    assert step == 4
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def nothing(file: Path) -> None:
    file.unlink()


def half_written(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def no_safetensors(file: Path) -> None:
    file.write_bytes(b"\xff" * 500)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def of_something_else(file: Path) -> None:
    save_file({"weight": torch.ones(3)}, file)


def of_another_architecture(file: Path) -> None:
    publish(file, nn.Linear(4, 3), 5)


def diverged(file: Path) -> None:
    model = network(0)
    model[3].bias.data[1] = float("nan")
    publish(file, model, 5)


BROKEN = [
    nothing,
    half_written,
    empty,
    no_safetensors,
    a_folder,
    of_something_else,
    of_another_architecture,
    diverged,
]


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda function: function.__name__)
def test_what_is_broken_does_not_count_until_it_is_whole_again(
    breaking: Callable[[Path], None], tmp_path: Path
) -> None:
    names = ("one", "other", "third")
    exchange = Exchange(network(0), context_of("one", tmp_path, names))
    for name in names[1:]:
        (tmp_path / name).mkdir()
        publish(tmp_path / name / PUBLISHED, network(1), 5)
    exchange.look()
    assert exchange.steps == {"other": 5, "third": 5}
    breaking(tmp_path / "other" / PUBLISHED)
    for _ in range(2):
        exchange.look()
        assert exchange.steps == {"third": 5}
        assert exchange.predictions(draw(2, 4)).isfinite().all()
    if (tmp_path / "other" / PUBLISHED).is_dir():
        (tmp_path / "other" / PUBLISHED).rmdir()
    mended = network(2)
    publish(tmp_path / "other" / PUBLISHED, mended, 4)  # of one that was restarted and is further back
    exchange.look()
    assert exchange.steps == {"other": 4, "third": 5}
    assert torch.equal(exchange.predictions(draw(2, 4))[:, 0], mended.eval()(draw(2, 4)))


def test_a_superseded_attempt_publishes_nothing(tmp_path: Path) -> None:
    context = context_of("one", tmp_path, ("one", "other"), attempt="first")
    claim_attempt(context.folder, "second")
    with pytest.raises(StageError, match="took over"):
        Exchange(network(), context).publish(3)
    assert not (tmp_path / "one" / PUBLISHED).exists()


def test_heard_and_staleness_are_counted_after_the_burn_in(tmp_path: Path) -> None:
    """Steps 0 to 9, exchanges every 4, burn-in 2; the other publishes at its steps 0 and 6, read at 0 and 4."""
    exchange = Exchange(perceptron(0), context_of("one", tmp_path, ("one", "other")))
    (tmp_path / "other").mkdir()
    method = Codistillation(config_of(exchange_every=4), exchange, 2)
    seen = []
    for step in range(10):
        if step in (0, 3):
            publish(tmp_path / "other" / PUBLISHED, perceptron(step), 2 * step)
        if step == 7:
            half_written(tmp_path / "other" / PUBLISHED)
        method.at_step(step)
        method.teach(batch_of(draw(2, 4)))
        seen.append([float(value) for value in method.observations().values()])
    assert seen == [[0, 0], [0, 0], [1, 2], [1, 3], [1, -2], [1, -1], [1, 0], [1, 1], [0, 0], [0, 0]]
    assert method.summary() == {"peers_heard": 6 / 8, "staleness": 3 / 6}


# Whole stages


def test_peers_without_a_weight_are_the_models_of_their_seeds_bit_for_bit(stages: Any) -> None:
    plain = {"stage": "train", "model": MLP, **SHARED}
    stages.run(
        {
            "plain": plain | {"seed": 3, "replicas": 3},
            "peers": PEERS | {"seed": 3, "weight": 0, "peers": 3, "burn_in": 0},
        }
    )
    for index in range(3):
        plain_payload = stages.record(f"plain.{index}").payload
        assert (
            stages.record(f"peers.{index}").payload["model.safetensors"] == plain_payload["model.safetensors"]
        )
        lines = stages.metrics(f"plain.{index}")
        assert [{key: line[key] for key in lines[0]} for line in stages.metrics(f"peers.{index}")] == lines


def test_who_hears_nobody_is_the_supervised_model_and_says_so(stages: Any) -> None:
    stages.run({"plain": {"stage": "train", "model": MLP, **SHARED}, "peers": PEERS})
    files = [stages.record(name).payload["model.safetensors"] for name in ("plain", "peers.0")]
    assert files[0] == files[1]
    assert stages.record("peers.0").metrics["peers_heard"] == 0
    assert "staleness" not in stages.record("peers.0").metrics
    assert "no other peer was ever heard" in log_of(stages, "peers.0")
    assert stages.record("peers.1").metrics["peers_heard"] == 1
    assert "no other peer was ever heard" not in log_of(stages, "peers.1")
    assert "hears `peers.0`, from its step 14 on" in log_of(stages, "peers.1")


@pytest.mark.parametrize("breaking", [half_written, of_another_architecture, diverged])
def test_a_broken_publication_leaves_a_peer_supervised(stages: Any, breaking: Callable[[Path], None]) -> None:
    stages.write({"plain": {"stage": "train", "model": MLP, **SHARED}, "peers": PEERS})
    other = stages.folder("peers.1").path
    other.mkdir(parents=True)
    publish(other / PUBLISHED, network(), 5)
    breaking(other / PUBLISHED)
    for name in ("plain", "peers.0"):
        assert stages.attempt(name).status == "done"
    files = [stages.record(name).payload["model.safetensors"] for name in ("plain", "peers.0")]
    assert files[0] == files[1]


def test_the_first_epochs_are_those_of_plain_training_while_peers_burn_in(stages: Any) -> None:
    stages.run(
        {
            "plain": {"stage": "train", "model": MLP, "seed": 1, **SHARED},
            "peers": PEERS | {"burn_in": 1},
        }
    )
    plain, peer = stages.metrics("plain"), stages.metrics("peers.1")
    assert {key: peer[0][key] for key in plain[0]} == plain[0]
    assert peer[0]["train/loss/soft"] == peer[0]["train/peers_heard"] == 0
    assert peer[1]["train/loss/soft"] > 0
    assert peer[1]["train/peers_heard"] == 1
    assert peer[1]["validation/loss"] != plain[1]["validation/loss"]
    # The other has finished its 14 steps; this one is at its steps 7 to 13, of 16 samples each, 12 in the last.
    ages = zip(range(7, 14), [16] * 6 + [12], strict=True)
    assert peer[1]["train/staleness"] == pytest.approx(sum(size * (step - 14) for step, size in ages) / 108)
    assert stages.record("peers.1").metrics["staleness"] == pytest.approx(-4)


@pytest.mark.parametrize("steps", [3, 10, 14])
def test_stopping_and_resuming_equals_not_stopping_where_the_others_stand_still(
    stages: Any, steps: int
) -> None:
    plan = {"peers": PEERS | {"model": CNN, "burn_in": 0.5}}
    whole = stages.run(plan)
    other = stages.elsewhere("again")
    other.write(plan)
    assert other.attempt("peers.0").status == "done"
    assert other.attempt("peers.1", iter([False] * (steps - 1) + [True]).__next__).status == "stopped"
    assert other.attempt("peers.1").status == "done"
    assert other.record("peers.1").payload == whole.record("peers.1").payload
    assert other.record("peers.1").metrics == whole.record("peers.1").metrics
    assert other.metrics("peers.1") == whole.metrics("peers.1")


def test_each_peer_is_the_plain_architecture_and_others_learn_from_them(
    stages: Any, student: dict[str, Any]
) -> None:
    stages.run(
        {
            "peers": PEERS | {"model": CNN},
            "together": {"stage": "evaluate", "models": ["peers"]},
            "student": student | {"teachers": ["peers"]},
            "of_one": student | {"teachers": ["peers.1"]},
        }
    )
    for name in ("peers.0", "peers.1"):
        plain = build_model("cnn", {"widths": [4, 6], "batch_norm": True}, (1, 8, 8), 3).eval()
        plain.load_state_dict(weights(stages, name), strict=True)
        whole = stages.model(name)
        inputs = torch.rand(7, 1, 8, 8)
        assert torch.equal(
            whole.logits(inputs), plain((inputs - whole.normalisation.mean) / whole.normalisation.std)
        )
        assert stages.record(name).parameters == sum(parameter.numel() for parameter in plain.parameters())
        assert set(stages.record(name).payload) >= {"model.safetensors", "model.json"}
        assert PUBLISHED not in stages.record(name).payload
    assert stages.record("together").status == stages.record("student").status == "done"


def test_the_peers_part_a_transfer_set_among_them(stages: Any) -> None:
    """108 training samples for five peers."""
    samples = 108
    split = TensorSplit(torch.zeros(samples, 2), torch.zeros(samples).long(), torch.randperm(samples) * 7)
    transfer = TransferSet(split, Normalisation(torch.zeros(1), torch.ones(1)))
    config = config_of(peers=5, data="shards", seed=2)
    parts = [shard_of(transfer, config.for_node(index)).split.ids for index in range(10)]
    for first in (0, 5):  # both groups
        assert sorted(torch.cat(parts[first : first + 5]).tolist()) == sorted(split.ids.tolist())
        assert {len(part) for part in parts[first : first + 5]} == {21, 22}
    assert parts[0].tolist() != parts[5].tolist()
    again = transfer.of(split.select(torch.randperm(samples)))
    assert set(shard_of(again, config.for_node(1)).split.ids.tolist()) == set(parts[1].tolist())
    few = transfer.of(split.select(torch.arange(3)))
    with pytest.raises(StageError, match="3 samples are too few"):
        shard_of(few, config.for_node(4))
    stages.run({"peers": PEERS | {"data": "shards"}})
    assert stages.metrics("peers.1")[-1]["step"] == 2 * math.ceil(54 / 16)


def test_losses_are_finite_under_bfloat16_and_with_channels_last(stages: Any) -> None:
    stages.run({"peers": PEERS | {"model": CNN, "precision": "bfloat16", "channels_last": True, "epochs": 4}})
    losses = [line["train/loss"] for line in stages.metrics("peers.1")]
    assert losses[-1] < losses[0]
    assert stages.record("peers.1").metrics["peers_heard"] == 1


def test_the_loop_tells_a_method_every_step_and_where_it_goes_on(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(Method, "at_step", lambda method, step: told.append(step))
    plan = {"plain": {"stage": "train", "model": MLP, **SHARED}}
    stages.write(plan)
    assert stages.attempt("plain", iter([False] * 4 + [True]).__next__).status == "stopped"
    assert stages.attempt("plain").status == "done"
    assert told == [0, 1, 2, 3, 4, 5, *range(5, 15)]


def test_peers_one_after_another_are_refused(stages: Any, teacher: dict[str, Any]) -> None:
    graph = stages.write({"teacher": teacher, "peers": PEERS})
    backend = LocalBackend()
    backend.check_feasible([graph.nodes["teacher"]])
    with pytest.raises(PlanError) as caught:
        backend.check_feasible(list(graph.nodes.values()))
    assert "`peers.0` learns from `peers.1` while both train" in caught.value.message
    assert "leave `--local` out" in caught.value.message
    assert "`train_peers`" in caught.value.message


def test_a_request_says_where_the_siblings_are(stages: Any) -> None:
    graph = stages.write({"peers": PEERS | {"peers": 3}})
    assert stages.request("peers.1").peers == {
        name: graph.nodes[name].folder for name in ("peers.0", "peers.2")
    }
