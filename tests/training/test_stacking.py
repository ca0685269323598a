"""Several trainings as one batched model, against the same trainings one after the other."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.errors import StageError
from raydistill.kinds.augmentations import CutoutConfig, MixupConfig, ShiftConfig
from raydistill.kinds.methods import DistConfig, DkdConfig, HintonConfig, NkdConfig, WsldConfig
from raydistill.methods.dist import Dist
from raydistill.methods.dkd import Dkd
from raydistill.methods.hinton import Hinton
from raydistill.methods.nkd import Nkd
from raydistill.methods.supervised import Supervised
from raydistill.methods.wsld import Wsld
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.tasks.splits import TensorSplit
from raydistill.training.balance import Balance
from raydistill.training.data import Batch
from raydistill.training.loop import Training, Turn
from raydistill.training.method import Method
from raydistill.training.stacking import RefusedError, Stack, hindrance, is_elementwise, try_stack

SEEDS = (3, 4, 5)
Make = Callable[[int], nn.Module]


class Exact(Supervised):
    """In whatever precision the network computes: the loss of the product is in float32."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        return {"hard": F.cross_entropy(student.logits, batch.labels)}


def built(bench: Any, folder: str, make: Make, seed: int, **given: Any) -> Training:
    method = given.pop("method", Supervised)()
    teacher, transfer = given.pop("teacher", None), given.pop("transfer", bench.transfer())
    config = bench.settings(seed=seed, **given)
    context = bench.context(f"{folder}-{seed}")
    validation = bench.split(1, 12)
    if transfer.split.inputs.dtype == torch.float64:
        validation = in_float64(validation)
    return Training(make(seed), method, transfer, validation, config, context, teacher)


def alone(trainings: Sequence[Training]) -> list[dict[str, Tensor]]:
    for training in trainings:
        for turn in training.turns():
            turn.make()
        training.context.flush()
    return [training.model.state_dict() for training in trainings]


def together(trainings: Sequence[Training], plain: int = 1) -> list[dict[str, Tensor]]:
    """`plain` steps one by one, then all others stacked."""
    steps = [training.turns() for training in trainings]
    turns: list[Turn] = [next(each) for each in steps]
    stack: Stack | None = None
    made = 0
    while turns:
        if made < plain:
            for turn in turns:
                turn.make()
        elif stack is None:
            stack = try_stack(trainings, turns)
        else:
            stack.step(turns)
        made += 1
        turns = [turn for each in steps if (turn := next(each, None)) is not None]
    assert stack is not None
    stack.dissolve()
    for training in trainings:
        training.context.flush()
    return [training.model.state_dict() for training in trainings]


def both(bench: Any, make: Make, **given: Any) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    one_by_one = alone([built(bench, "alone", make, seed, **given) for seed in SEEDS])
    return together([built(bench, "together", make, seed, **given) for seed in SEEDS]), one_by_one


def assert_close(found: Any, expected: Any, **tolerance: float) -> None:
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, **tolerance)


def double(make: Make) -> Make:
    return lambda seed: make(seed).double()


def in_double(bench: Any) -> Any:
    """The bench's samples, as a network of float64 takes them."""
    return bench.transfer().of(in_float64(bench.split()))


def in_float64(split: TensorSplit) -> TensorSplit:
    return TensorSplit(split.inputs.double(), split.labels, split.ids)


ADAM = {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "undecayed": "norms_and_biases"}
SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0}},
    "momentum and decay": {"optimizer": SGD, "schedule": {"name": "cosine"}},
    "adamw, biases undecayed": {"optimizer": ADAM, "schedule": {"name": "one_cycle"}},
    "clipped": {"optimizer": SGD, "clip_norm": 0.3},
    "bounded": {"optimizer": SGD, "max_norm": 0.5},
    "averaged": {"optimizer": SGD, "ema": {"decay": 0.9}},
    "changes": {"optimizer": SGD, "changes": [{"after": 1, "set": {"optimizer.learning_rate": 0.02}}]},
    "frozen": {"optimizer": SGD, "freeze": ["1.*"]},
    "groups": {"optimizer": SGD, "parameter_groups": [{"match": "4.*", "lr_scale": 3, "weight_decay": 0.2}]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_stacked_weights_are_those_of_one_by_one_in_float64(bench: Any, options: dict[str, Any]) -> None:
    given = {"method": Exact, "transfer": in_double(bench), **options}
    found, expected = both(bench, double(bench.mlp), **given)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert not torch.equal(expected[0]["1.weight"], expected[1]["1.weight"])


def test_running_statistics_and_convolutions_are_those_of_one_by_one(bench: Any) -> None:
    given = {"method": Exact, "transfer": in_double(bench), "optimizer": SGD}
    found, expected = both(bench, double(bench.cnn), **given)
    assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert found[0]["0.1.num_batches_tracked"] == 15


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_smoothing": 0.1},
        {"augment": (ShiftConfig(name="shift", pixels=1), CutoutConfig(name="cutout", size=2))},
        {"augment": (MixupConfig(name="mixup"),)},
        {"balance": Balance(weights=torch.tensor([0.5, 1.0, 1.5]))},
        {"balance": Balance(shift=torch.tensor([0.5, 0.0, -0.5]))},
        {"balance": Balance(is_binary=True)},
    ],
    ids=["plain", "smoothed", "augmented", "mixed", "weighed", "shifted", "binary"],
)
def test_what_a_training_draws_and_weighs_is_its_own(bench: Any, changes: dict[str, Any]) -> None:
    """In float32, as the product computes; each training draws its views by its own seed."""

    def made(folder: str, seed: int) -> Training:
        bench.augment = changes.get("augment", ())
        transfer = bench.transfer()
        views = type(transfer.views)(bench.augment, seed)
        transfer = type(transfer)(
            transfer.split, transfer.normalisation, views, balance=changes.get("balance")
        )
        smoothing = changes.get("label_smoothing", 0.0)
        return built(
            bench,
            folder,
            bench.mlp,
            seed,
            transfer=transfer,
            method=lambda: Supervised(smoothing),
            optimizer=SGD,
        )

    expected = alone([made("alone", seed) for seed in SEEDS])
    found = together([made("together", seed) for seed in SEEDS])
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for seed in SEEDS:
        own, other = bench.metrics(f"together-{seed}"), bench.metrics(f"alone-{seed}")
        assert [line["validation/accuracy"] for line in own] == [
            line["validation/accuracy"] for line in other
        ]
        assert [line["train/loss"] for line in own] == pytest.approx(
            [line["train/loss"] for line in other], rel=1e-4
        )


METHODS = [(HintonConfig, Hinton), (DkdConfig, Dkd), (DistConfig, Dist), (NkdConfig, Nkd), (WsldConfig, Wsld)]


@pytest.mark.parametrize(("options", "method"), METHODS, ids=[kind.__name__.lower() for _, kind in METHODS])
@pytest.mark.parametrize("augment", [(), (MixupConfig(name="mixup"),)], ids=["clean", "mixed"])
def test_students_of_soft_targets_are_those_of_one_by_one(
    bench: Any, options: Any, method: Any, augment: tuple[Any, ...]
) -> None:
    def teacher(batch: Batch) -> TeacherTargets:
        logits = torch.sin(batch.ids[:, None, None] * torch.tensor([1.0, 2.0, 3.0]))
        return TeacherTargets(logits, torch.ones(len(batch.ids), 1))

    bench.augment = augment
    config = options.model_validate({"method": options.word})
    # Some weigh their terms by 100, and correlations of five samples are steep: further on rounding grows.
    given = {"optimizer": SGD | {"learning_rate": 0.001}, "epochs": 1}
    found, expected = both(bench, bench.mlp, teacher=teacher, method=lambda: method(config), **given)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_was_stacked_goes_on_alone_from_its_checkpoint(bench: Any) -> None:
    """Written in the middle of stacked steps; the one that goes on does not know that there were others."""
    given = {"method": Exact, "transfer": in_double(bench), "optimizer": ADAM, "ema": {"decay": 0.9}}
    expected = alone([built(bench, "alone", double(bench.mlp), seed, **given) for seed in SEEDS])
    trainings = [built(bench, "cut", double(bench.mlp), seed, **given) for seed in SEEDS]
    steps = [training.turns() for training in trainings]
    turns = [next(each) for each in steps]
    for turn in turns:
        turn.make()
    turns = [next(each) for each in steps]
    stack = try_stack(trainings, turns)
    for _ in range(5):
        turns = [next(each) for each in steps]
        stack.step(turns)
    turns = [next(each) for each in steps]
    for training in trainings:
        training._save()
    stack.step(turns)  # is lost
    again = alone([built(bench, "cut", double(bench.mlp), seed, **given) for seed in SEEDS])
    assert_close(again, expected, rtol=1e-10, atol=1e-12)


def test_trainings_of_a_dissolved_stack_are_their_own_again(bench: Any) -> None:
    trainings = [built(bench, "own", bench.mlp, seed, optimizer=ADAM) for seed in SEEDS]
    together(trainings)
    for training in trainings:
        tensors = [*training.learner.parameters(), *training.learner.buffers()]
        tensors += [slot for slots in training.optimizer.state.values() for slot in slots.values()]
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
    before = trainings[1].model[1].weight.clone()
    with torch.no_grad():
        trainings[0].model[1].weight.zero_()
    assert torch.equal(trainings[1].model[1].weight, before)


class Counting(Method):
    """On the host: once in a stacked step, and not once for each training."""

    stacks = True

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0.0

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        self.seen += 0.5
        return {"hard": self.seen * F.cross_entropy(student.logits, batch.labels)}


class Asking(Method):
    """For a number, in every step."""

    stacks = True

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        loss = F.cross_entropy(student.logits, batch.labels)
        return {"hard": loss if loss.item() > 0 else 0 * loss}


@pytest.mark.parametrize(("method", "why"), [(Counting, "more than rounding"), (Asking, "item")])
def test_a_step_that_cannot_be_stacked_is_refused_and_was_made_plainly(
    bench: Any, method: type[Method], why: str
) -> None:
    expected = alone([built(bench, "alone", bench.mlp, seed, method=method) for seed in SEEDS])
    trainings = [built(bench, "refused", bench.mlp, seed, method=method) for seed in SEEDS]
    steps = [training.turns() for training in trainings]
    for each in steps:
        next(each).make()
    with pytest.raises(RefusedError, match=why):
        try_stack(trainings, [next(each) for each in steps])
    for training in trainings:
        training.learner.method.seen = 1.0  # as two plain steps left it
    for each in steps:
        for turn in each:
            turn.make()
    assert_close([training.model.state_dict() for training in trainings], expected, rtol=0, atol=0)


def test_networks_of_other_shapes_are_refused(bench: Any) -> None:
    trainings = [built(bench, "a", bench.mlp, 1), built(bench, "b", bench.cnn, 2)]
    steps = [training.turns() for training in trainings]
    for each in steps:
        next(each).make()
    with pytest.raises(RefusedError, match="other parts"):
        try_stack(trainings, [next(each) for each in steps])


def test_no_number_of_one_training_reaches_another(bench: Any) -> None:
    """One has weights that are no numbers; the others' are those of trainings that never met it."""
    expected = alone([built(bench, "alone", bench.mlp, seed, optimizer=SGD) for seed in SEEDS])
    trainings = [built(bench, "bad", bench.mlp, seed, optimizer=SGD) for seed in SEEDS]
    steps = [training.turns() for training in trainings]
    for each in steps:
        next(each).make()
    stack = try_stack(trainings, [next(each) for each in steps])
    with torch.no_grad():
        trainings[1].model[1].weight.fill_(torch.nan)
    for _ in range(3):
        stack.step([next(each) for each in steps])
    first, third = next(steps[0]), next(steps[2])
    with pytest.raises(StageError, match="not finite"):
        next(steps[1])  # comes after the end of its epoch, which looks
    stack.dissolve()
    for turn in chain([first], steps[0], [third], steps[2]):
        turn.make()
    good = [trainings[index].model.state_dict() for index in (0, 2)]
    assert_close(good, [expected[0], expected[2]], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_stacked_says_why(bench: Any) -> None:
    transfer = bench.transfer()
    assert hindrance(Supervised(), bench.mlp(), transfer) is None
    assert "dropout" in str(hindrance(Supervised(), bench.mlp(dropout=0.5), transfer))
    assert "one student at a time" in str(hindrance(Method(), bench.mlp(), transfer))
    looking = Supervised()
    looking.student_features = ("embedding",)
    assert "features" in str(hindrance(looking, bench.mlp(), transfer))
    assert not is_elementwise(torch.optim.LBFGS(bench.mlp().parameters()))
