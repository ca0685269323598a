"""The loop: it learns, repeats, and resumes as if it had not stopped; against plain loops written out here."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.errors import StageError
from raydistill.kinds.augmentations import (
    CutmixConfig,
    CutoutConfig,
    EraseConfig,
    FlipConfig,
    MixupConfig,
    RandAugmentConfig,
    ResizedCropConfig,
    ShiftConfig,
)
from raydistill.kinds.methods import LabelsConfig
from raydistill.kinds.training import SgdConfig, TransferConfig
from raydistill.methods.combined import Combined
from raydistill.methods.supervised import Supervised
from raydistill.models.build import build_model
from raydistill.models.taps import Output
from raydistill.runs.context import claim_attempt
from raydistill.targets.mixing import TeacherTargets
from raydistill.training import loop, running_losses
from raydistill.training.data import Batch
from raydistill.training.method import Method

STEPS = 15  # 3 epochs of 5 batches
ONE_CYCLE = {"optimizer": {"name": "adamw", "weight_decay": 0.1}, "schedule": {"name": "one_cycle"}}
SGD_WITH_DECAY = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
STEP_SCHEDULE = {
    "optimizer": SGD_WITH_DECAY,
    "schedule": {"name": "step", "milestones": [1, 2]},
}


class WithConnector(Method):
    """A method that trains a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.connector = nn.Linear(3, 3)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        return {
            "hard": F.cross_entropy(student.logits, batch.labels),
            "connected": F.cross_entropy(self.connector(student.logits), batch.labels),
        }


class Times(Method):
    """A cross-entropy times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        return {"hard": self.factor * F.cross_entropy(student.logits.float(), batch.labels)}


class Infinite(Method):
    """The slope is 1/0 in every step, and the loss is not."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        return {"hard": infinite_gradient(F.cross_entropy(student.logits.float(), batch.labels))}


class Spoilt(Method):
    """Something goes wrong at one step, counted from 0."""

    def __init__(self, step: int, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.spoil = step, spoil

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        self.left -= 1
        loss = F.cross_entropy(student.logits, batch.labels)
        return {"hard": self.spoil(loss) if self.left == -1 else loss}


def mlp_with_step_schedule(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.config = STEP_SCHEDULE
    return bench.mlp(dropout=0.5), {}


def augmented_cnn_with_one_cycle(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.config, bench.augment = ONE_CYCLE, (ShiftConfig(pixels=2), FlipConfig(), CutoutConfig(size=3))
    return bench.cnn(), {}


def mixup_with_cosine_and_bounds(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.config = {"schedule": {"name": "cosine"}, "clip_norm": 0.5, "max_norm": 0.8, "label_smoothing": 0.1}
    bench.augment = (ShiftConfig(), MixupConfig(alpha=0.4))
    return bench.cnn(), {}


def cutmix_and_drawn_changes(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.augment = (ResizedCropConfig(), RandAugmentConfig(), EraseConfig(), CutmixConfig())
    return bench.cnn(), {}


def channels_last_in_bfloat16(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.config, bench.channels_last = STEP_SCHEDULE | {"precision": "bfloat16"}, True
    return bench.cnn(), {}


def adamw_without_schedule_and_a_connector(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.config = {"optimizer": {"name": "adamw"}}
    return bench.mlp(dropout=0.2), {"method": WithConnector()}


def early_stopping(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.config = {
        "early_stopping": {"patience": 9, "metric": "loss"},
        "optimizer": {"name": "sgd", "learning_rate": 0.9},
    }
    return bench.mlp(dropout=0.5), {}


def averages_of_weights_partly_decayed(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.config = {
        "optimizer": SGD_WITH_DECAY | {"undecayed": "norms_and_biases"},
        "schedule": {"name": "step", "milestones": [1, 2], "warmup": 0.2},
        "changes": [{"after": 1, "set": {"optimizer.weight_decay": 0.2, "optimizer.learning_rate": 0.2}}],
        "ema": {"decay": 0.8},
        "early_stopping": {"patience": 9},
        "parameter_groups": [{"match": "4.*", "lr_scale": 3, "weight_decay": 0.1}],
        "layer_decay": 0.7,
    }
    return bench.cnn(), {}


def gradients_of_several_batches(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    bench.config = STEP_SCHEDULE | {"batch_size": 1, "accumulate": 5, "ema": {"decay": 0.8}}
    bench.augment = (MixupConfig(),)
    return bench.mlp(dropout=0.5), {}


def scaled_gradients_in_float16(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The first steps overflow and are left out."""
    bench.config = STEP_SCHEDULE | {"precision": "float16", "ema": {"decay": 0.8}, "clip_norm": 0.5}
    return bench.mlp(dropout=0.5), {"method": Times(1000.0)}


def residual_branches_that_are_dropped(bench: Any) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return build_model("resnet8", {"width_multiplier": 0.25, "drop_path": 0.5}, (1, 8, 8), 3), {}


RECIPES = [
    mlp_with_step_schedule,
    augmented_cnn_with_one_cycle,
    mixup_with_cosine_and_bounds,
    cutmix_and_drawn_changes,
    channels_last_in_bfloat16,
    adamw_without_schedule_and_a_connector,
    early_stopping,
    averages_of_weights_partly_decayed,
    gradients_of_several_batches,
    scaled_gradients_in_float16,
    residual_branches_that_are_dropped,
]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit, buffers included."""
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)


def plain_training(
    bench: Any, model: nn.Module, finish: Callable[[torch.optim.Optimizer], None], **config: Any
) -> nn.Module:
    """The loop anybody would write, over the same order of samples; `finish` makes the step."""
    settings, transfer = bench.settings(**config), bench.transfer()
    optimizer = torch.optim.SGD(model.parameters(), settings.optimizer.learning_rate, momentum=0.9)
    for epoch in range(settings.epochs):
        for rows in transfer.epoch_order(settings.seed, epoch).split(settings.batch_size):
            inputs = (transfer.split.inputs[rows] - 0.5) / 0.3
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), transfer.split.labels[rows]).backward()
            finish(optimizer)
    return model


def test_it_is_the_loop_that_anybody_would_write(bench: Any) -> None:
    expected = plain_training(bench, bench.cnn(), lambda optimizer: optimizer.step())
    assert same_weights(bench.train(bench.cnn()), expected)


def test_steps_of_several_batches_are_those_of_the_loop_that_anybody_would_write(bench: Any) -> None:
    """23 samples in steps of 12 and 11, the last batch of which has 2: weighed by samples. Batch
    norms see the batches."""
    model, transfer, settings = bench.cnn(), bench.transfer(), bench.settings()
    optimizer = torch.optim.SGD(model.parameters(), settings.optimizer.learning_rate, momentum=0.9)
    for epoch in range(settings.epochs):
        for step in transfer.epoch_order(settings.seed, epoch).split(12):
            optimizer.zero_grad()
            for rows in step.split(3):
                inputs = (transfer.split.inputs[rows] - 0.5) / 0.3
                loss = F.cross_entropy(model(inputs), transfer.split.labels[rows], reduction="sum")
                (loss / len(step)).backward()
            optimizer.step()
    trained = bench.train(bench.cnn(), batch_size=3, accumulate=4)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 6])
@pytest.mark.parametrize("recipe", ["plain", "mixed", "weighed", "unlabelled"])
def test_so_many_small_batches_are_one_large_one(bench: Any, recipe: str, batch_size: int) -> None:
    """Whatever counts per sample, in schedules, averages and the numbers that are told; also where samples of a class,
    or those with a label, come by chance."""
    if recipe == "mixed":
        bench.augment = (ShiftConfig(), MixupConfig(), CutmixConfig())
    bench.config = ONE_CYCLE | {"ema": {"decay": 0.8}, "label_smoothing": 0.1, "clip_norm": 0.5}
    transfer = bench.transfer()
    if recipe == "weighed":
        transfer = transfer.told(bench.settings(class_weights=[1, 2, 4], logit_adjustment=1), ("a", "b", "c"))
    if recipe == "unlabelled":
        transfer.split.labels[::3] = -1
    bench.transfer = lambda: transfer
    large = bench.train(bench.mlp(), "large", batch_size=12).state_dict()
    small = bench.train(bench.mlp(), "small", batch_size=batch_size, accumulate=12 // batch_size).state_dict()
    for key, value in large.items():
        torch.testing.assert_close(small[key], value, rtol=1e-4, atol=1e-6)
    for one, several in zip(bench.metrics("large"), bench.metrics("small"), strict=True):
        assert several == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_the_loop_that_anybody_would_write(bench: Any, warmup: bool) -> None:
    model, steps = bench.cnn(), 0
    average = {key: value.clone() for key, value in model.state_dict().items()}

    def follow(optimizer: torch.optim.Optimizer) -> None:
        nonlocal steps
        optimizer.step()
        steps += 1
        decay = min(0.6, (1 + steps) / (10 + steps)) if warmup else 0.6
        for key, value in model.state_dict().items():
            is_count = key.endswith("num_batches_tracked")
            average[key] = value.clone() if is_count else average[key].lerp(value, 1 - decay)

    plain_training(bench, model, follow)
    trained = bench.train(bench.cnn(), ema={"decay": 0.6, "warmup": warmup})
    assert not same_weights(trained, model)
    model.load_state_dict(average)
    assert same_weights(trained, model)


def test_what_is_judged_after_an_epoch_is_the_average_and_what_learns_does_not_notice(bench: Any) -> None:
    split = bench.split(1, 12)
    for epochs in (1, 2):
        model = bench.train(bench.cnn(), f"train-{epochs}", epochs=epochs, ema={"decay": 0.8}).eval()
        right = (model((split.inputs - 0.5) / 0.3).argmax(dim=1) == split.labels).float().mean().item()
        assert bench.metrics(f"train-{epochs}")[-1]["validation/accuracy"] == pytest.approx(right)
    losses = [line["train/loss"] for line in bench.metrics("train-2")]
    bench.train(bench.cnn(), "plain", epochs=2)
    assert losses == [line["train/loss"] for line in bench.metrics("plain")]


def test_it_learns_one_batch_by_heart(bench: Any) -> None:
    bench.train(bench.mlp(), epochs=80, batch_size=32)
    assert bench.metrics()[-1]["train/loss"] < 0.01
    assert bench.metrics()[0]["train/loss"] > 0.5


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_float16_is_the_loop_that_anybody_would_write(bench: Any, name: str, accumulate: int) -> None:
    """With the factor kept by hand: a step with a gradient that is not finite is as if it had not been."""
    model, transfer, scale, skipped = bench.cnn(), bench.transfer(), 65536.0, 0
    classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = classes[name](model.parameters(), 1e-4, weight_decay=0.0, **momentum)
    for epoch in range(3):
        for step in transfer.epoch_order(0, epoch).split(4 * accumulate):
            optimizer.zero_grad()
            for rows in step.split(4):
                with torch.autocast("cpu", torch.float16):
                    logits = model((transfer.split.inputs[rows] - 0.5) / 0.3)
                loss = F.cross_entropy(logits.float(), transfer.split.labels[rows])
                (scale * 30 * loss * len(rows) / len(step)).backward()
            gradients = [value.grad for value in model.parameters() if value.grad is not None]
            if not all(gradient.isfinite().all() for gradient in gradients):
                scale, skipped = scale / 2, skipped + 1
                continue
            for gradient in gradients:
                gradient.div_(scale)
            optimizer.step()
    assert 0 < skipped < 6
    settings = {"precision": "float16", "batch_size": 4, "accumulate": accumulate}
    written = {"name": name, "learning_rate": 1e-4}
    found = bench.train(bench.cnn(), method=Times(30.0), optimizer=written, **settings)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    assert bench.metrics()[-1]["train/gradient_scale"] == scale


def test_an_optimizer_that_cannot_be_fused_leaves_out_the_same_steps(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, method = scaled_gradients_in_float16(bench)
    fused = bench.train(model, "fused", **method).state_dict()
    monkeypatch.setattr(SgdConfig, "fuses", False)
    model, method = scaled_gradients_in_float16(bench)
    for key, value in bench.train(model, "alone", **method).state_dict().items():
        torch.testing.assert_close(value, fused[key], rtol=1e-4, atol=1e-6)
    scales = [
        [line["train/gradient_scale"] for line in bench.metrics(name) if "epoch" in line]
        for name in ("fused", "alone")
    ]
    assert scales[0] == scales[1]
    assert scales[0][0] < 65536


def test_small_gradients_do_not_vanish_in_float16(bench: Any) -> None:
    """A millionth of the loss, a million times the rate: most gradients lie below the least number of float16."""
    plain = bench.train(bench.mlp(), "plain", method=Times(1.0)).state_dict()
    rate = {"name": "sgd", "learning_rate": 0.05e6}
    scaled = bench.train(
        bench.mlp(), "half", method=Times(1e-6), optimizer=rate, precision="float16"
    ).state_dict()
    first = bench.mlp().state_dict()
    for key, value in plain.items():
        moved = (value - first[key]).abs().max()
        assert (scaled[key] - value).abs().max() < 0.02 * moved


def test_gradients_that_no_factor_keeps_finite_are_an_error(bench: Any) -> None:
    with pytest.raises(
        StageError, match=r"not finite in float16, whatever they are scaled by.*`precision: bfloat16`"
    ):
        bench.train(bench.mlp(), method=Infinite(), precision="float16", epochs=6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_repeats_exactly_under_a_seed(bench: Any, recipe: Any) -> None:
    (first, method), (second, again) = recipe(bench), recipe(bench)
    bench.train(first, "train-1", **method)
    torch.rand(1000)  # what happened before does not matter
    bench.train(second, "train-2", **again)
    assert same_weights(first, second)
    assert bench.metrics("train-1") == bench.metrics("train-2")


def test_another_seed_gives_another_model(bench: Any) -> None:
    assert not same_weights(bench.train(bench.mlp(), "a", seed=0), bench.train(bench.mlp(), "b", seed=1))


def test_another_seed_gives_other_dropout_and_another_order(bench: Any) -> None:
    bench.config = {"epochs": 1, "batch_size": 32}  # one batch: the order hardly matters
    plain = [bench.train(bench.mlp(), f"p{seed}", seed=seed)[1].weight for seed in (0, 1)]
    dropped = [bench.train(bench.mlp(dropout=0.5), f"d{seed}", seed=seed)[1].weight for seed in (0, 1)]
    torch.testing.assert_close(*plain)
    assert (dropped[0] - dropped[1]).abs().max() > 1e-3


# The first step, inside an epoch, an epoch's last step, an epoch's first, the last step but one, the last of all.
@pytest.mark.parametrize("steps", [1, 3, 5, 6, STEPS - 1, STEPS])
@pytest.mark.parametrize("recipe", RECIPES)
def test_stopping_and_resuming_equals_not_stopping(bench: Any, recipe: Any, steps: int) -> None:
    model, method = recipe(bench)
    whole = bench.train(model, "train-1", **method)
    model, method = recipe(bench)
    bench.stopped(model, steps, "train-2", **method)
    model, method = recipe(bench)
    assert not same_weights(model, whole)
    assert same_weights(bench.train(model, "train-2", **method), whole)
    assert bench.metrics("train-2") == bench.metrics("train-1")


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopping_after_every_step_equals_not_stopping(bench: Any, recipe: Any) -> None:
    model, method = recipe(bench)
    whole = bench.train(model, "train-1", **method)
    for _ in range(STEPS):
        model, method = recipe(bench)
        bench.stopped(model, 1, "train-2", **method)
    model, method = recipe(bench)
    assert same_weights(bench.train(model, "train-2", **method), whole)
    assert bench.metrics("train-2") == bench.metrics("train-1")


def test_what_was_reported_after_the_last_checkpoint_is_reported_again(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.train(bench.mlp(), "train-1")
    bench.stopped(bench.mlp(), 7, "train-2")
    checkpoint = bench.root / "train-2/checkpoint"
    kept = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    bench.train(bench.mlp(), "train-2")  # goes on, and dies at the very end without another checkpoint
    for path in checkpoint.iterdir():
        path.unlink()
    for name, content in kept.items():
        (checkpoint / name).write_bytes(content)
    assert same_weights(bench.train(bench.mlp(), "train-2"), whole)
    assert bench.metrics("train-2") == bench.metrics("train-1")


def test_looks_at_the_losses_do_not_change_the_metrics(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Uneven(Method):
        """Losses so unlike each other that their sum depends on the order."""

        sizes = 0.3, 1.7e16, 0.7, 3e-9, 1.1e16

        def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
            loss = F.cross_entropy(student.logits, batch.labels)
            return {"hard": loss - loss.detach() + self.sizes[int(batch.ids[0]) % 5]}

    bench.train(bench.mlp(), "train-1", method=Uneven())
    monkeypatch.setattr(running_losses, "LOOK_EVERY", 2)
    bench.train(bench.mlp(), "train-2", method=Uneven())
    assert bench.metrics("train-1") == bench.metrics("train-2")


@pytest.mark.parametrize("stops", [[], [1], [2], [3, 1, 2]])
def test_the_curves_within_epochs_are_means_of_so_many_steps_wherever_it_stopped(
    bench: Any, monkeypatch: pytest.MonkeyPatch, stops: list[int]
) -> None:
    seen: list[float] = []

    class Listening(Method):
        def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
            seen.append(F.cross_entropy(student.logits, batch.labels).item())
            return {"hard": F.cross_entropy(student.logits, batch.labels)}

    monkeypatch.setattr(running_losses, "CURVE_EVERY", 2)
    for steps in stops:
        bench.stopped(bench.mlp(), steps, method=Listening())
    bench.train(bench.mlp(), method=Listening())
    points = {line["step"]: line for line in bench.metrics() if "epoch" not in line}
    assert sorted(points) == [2, 4, 7, 9, 12, 14]  # an epoch's fifth step is in its own line alone
    for step, line in points.items():
        assert line["steps/loss"] == pytest.approx((seen[step - 2] + seen[step - 1]) / 2, rel=1e-6)
        assert line["steps/loss/hard"] == line["steps/loss"]
        assert set(line) == {"step", "steps/loss", "steps/loss/hard", "steps/accuracy"}


def infinite_gradient(loss: Tensor) -> Tensor:
    """The same value, with a slope of 1/0."""
    return loss + (loss - loss.detach()).sqrt()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_last_good_checkpoint(
    bench: Any, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    good = bench.stopped(bench.mlp(), 7, "train-1")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    method = Spoilt(7, lambda loss: loss * value)
    with pytest.raises(
        StageError, match=rf"loss is not finite at step 7 \(hard {value}\).*checkpoint is kept"
    ):
        bench.train(bench.mlp(), "train-2", method=method)
    monkeypatch.undo()
    assert same_weights(bench.stopped(bench.mlp(), 1, "train-1"), bench.stopped(bench.mlp(), 1, "train-2"))
    assert not same_weights(good, bench.stopped(bench.mlp(), 1, "train-1"))


class WithSilentTerms(Method):
    """Of four losses one is always 0, one has no gradient, and one begins with the second epoch."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        hard = F.cross_entropy(student.logits, batch.labels)
        late = hard * (batch.epoch > 0)
        return {"hard": hard, "zero": 0 * hard, "fixed": hard.detach(), "late": late}


@pytest.mark.parametrize("steps", [None, 3, 5, 12, STEPS])
def test_a_loss_that_teaches_nothing_in_any_step_is_told_wherever_the_training_was_stopped(
    bench: Any, caplog: pytest.LogCaptureFixture, steps: int | None
) -> None:
    caplog.set_level("INFO", "raydistill")
    if steps is not None:
        bench.stopped(bench.mlp(), steps, method=WithSilentTerms())
    bench.train(bench.mlp(), method=WithSilentTerms())
    told = [record.message for record in caplog.records if record.message.startswith("warning:")]
    assert [text.split("`")[1] for text in told] == ["fixed", "zero"]
    assert "was 0 or without a gradient in every step" in told[0]


def test_a_ramp_that_never_begins_is_told_and_one_that_does_is_not(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "raydistill")
    bench.train(bench.mlp(), method=WithSilentTerms(), epochs=1)
    assert "the loss `late` was 0" in caplog.text


def test_checkpoints_that_take_long_are_written_less_often(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second for each of 15 steps, and 5 for a checkpoint: due after 2 of them, and then after 5 times as many."""
    seconds, saved = [0.0], []

    def look() -> bool:
        seconds[0] += 1
        return False

    def save(folder: Path, progress: Mapping[str, Any], *rest: Any) -> None:
        seconds[0] += 5
        saved.append(progress["step"])

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 2.0)
    monkeypatch.setattr(loop.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(loop, "save_checkpoint", save)
    bench.train(bench.mlp(), should_stop=look)
    assert saved == [3, 14]


class WithBank(Method):
    """Of its buffers one is written alike by all workers."""

    written_alike = ("bank",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(1))


def test_what_workers_write_alike_is_named_as_the_learner_has_it() -> None:
    bank = WithBank()
    alone = loop.Learner(nn.Linear(2, 2), bank)
    beside = loop.Learner(
        nn.Linear(2, 2), Combined([Supervised(), bank], [LabelsConfig()] * 2, ["one", "two"])
    )
    assert loop.written_alike(alone) == ["method.bank"]
    assert loop.written_alike(beside) == ["method.methods.1.bank"]
    for learner in (alone, beside):
        assert learner.get_buffer(loop.written_alike(learner)[0]) is bank.bank


def test_weights_that_are_not_finite_never_become_a_checkpoint(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(StageError, match="norm of the weights is not finite at step 7"):
        bench.train(bench.mlp(), method=Spoilt(7, infinite_gradient))
    monkeypatch.undo()
    assert all(value.isfinite().all() for value in bench.train(bench.mlp()).state_dict().values())


def test_weights_that_are_not_finite_after_the_last_step_are_no_result(bench: Any) -> None:
    with pytest.raises(StageError, match="norm of the weights is not finite at step 14"):
        bench.train(bench.mlp(), method=Spoilt(STEPS - 1, infinite_gradient))


def test_max_norm_bounds_every_unit_after_every_step(bench: Any) -> None:
    model, longest = bench.cnn(), []

    def look() -> bool:
        layers = (model[0][0], model[1], model[4])
        longest.append(max(layer.weight.flatten(1).norm(dim=1).max().item() for layer in layers))
        return False

    bench.train(model, max_norm=0.5, should_stop=look)
    assert len(longest) == STEPS
    assert max(longest) <= 0.5 + 1e-6
    assert min(longest) > 0.49


def test_max_norm_equals_a_loop_over_units(bench: Any) -> None:
    model = bench.mlp()

    @torch.no_grad()
    def step(optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        for layer in (model[1], model[4]):
            for unit in layer.weight:
                length = math.sqrt(sum(value**2 for value in unit.tolist()))
                if length > 0.5:
                    unit *= 0.5 / length

    expected = plain_training(bench, model, step)
    found = bench.train(bench.mlp(), max_norm=0.5)
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_clip_norm_bounds_the_gradient(bench: Any) -> None:
    model = bench.mlp()

    def step(optimizer: torch.optim.Optimizer) -> None:
        total = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 0.1 / total)
        optimizer.step()

    expected = plain_training(bench, model, step)
    found = bench.train(bench.mlp(), clip_norm=0.1)
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_label_smoothing_is_that_of_torch(bench: Any) -> None:
    class Smoothed(Method):
        def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
            return {"hard": F.cross_entropy(student.logits, batch.labels, label_smoothing=0.2)}

    expected = bench.train(bench.mlp(), "train-1", method=Smoothed())
    assert same_weights(bench.train(bench.mlp(), "train-2", method=Supervised(0.2)), expected)


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: [x], lambda x: {"logits": x}])
def test_a_model_that_returns_something_else_than_logits_is_told_what_to_return(
    bench: Any, wrap: Callable[[Tensor], Any]
) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = bench.mlp()

        def forward(self, inputs: Tensor) -> Any:
            return wrap(self.network(inputs))

    name = type(wrap(torch.zeros(1))).__name__
    with pytest.raises(StageError, match=rf"the model returns a {name}; .* logits \(B, C\), one tensor"):
        bench.train(Wrapped())


@pytest.mark.parametrize("batch_size", [5, 11, 22, 23, 100])
@pytest.mark.parametrize("steps", [None, 1, 2])
def test_an_epoch_counts_every_sample_once_wherever_it_stopped(
    bench: Any, batch_size: int, steps: int | None
) -> None:
    still = {"batch_size": batch_size, "epochs": 2, "optimizer": {"name": "sgd", "learning_rate": 1e-30}}
    model, split = bench.mlp().eval(), bench.split()
    logits = model((split.inputs - 0.5) / 0.3)
    if steps is not None:
        bench.stopped(bench.mlp(), steps, **still)
    bench.train(bench.mlp(), **still)
    right = (logits.argmax(dim=1) == split.labels).double().mean().item()
    for line in bench.metrics():
        assert line["train/loss"] == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-6)
        assert line["train/accuracy"] == pytest.approx(right, rel=1e-6)


def test_metrics_are_those_of_the_epoch(bench: Any) -> None:
    seen: list[float] = []

    class Listening(Method):
        def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
            loss = F.cross_entropy(student.logits, batch.labels)
            seen.append(loss.item())
            return {"one": 0.25 * loss, "other": 0.75 * loss}

    model = bench.train(bench.mlp(), method=Listening(), schedule={"name": "step", "milestones": [2]})
    lines = bench.metrics()
    assert [(line["step"], line["epoch"]) for line in lines] == [(5, 1), (10, 2), (15, 3)]
    for epoch, line in enumerate(lines):
        *whole, last = seen[5 * epoch : 5 * epoch + 5]  # four batches of 5 and one of 3
        mean = (5 * sum(whole) + 3 * last) / 23
        assert line["train/loss"] == pytest.approx(mean, rel=1e-6)
        assert line["train/loss/one"] == pytest.approx(0.25 * mean, rel=1e-6)
    assert [line["train/learning_rate"] for line in lines] == pytest.approx([0.05, 0.005, 0.005])
    validation = bench.split(1, 12)
    logits = model.eval()((validation.inputs - 0.5) / 0.3)
    right = (logits.argmax(dim=1) == validation.labels).double().mean().item()
    assert lines[-1]["validation/accuracy"] == pytest.approx(right)
    expected = F.cross_entropy(logits, validation.labels).item()
    assert lines[-1]["validation/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_methods_own_module_trains_and_stays_out_of_the_model(bench: Any) -> None:
    method = WithConnector()
    before = method.connector.weight.detach().clone()
    model = bench.train(bench.mlp(), method=method)
    assert not torch.equal(method.connector.weight, before)
    assert model.state_dict().keys() == bench.mlp().state_dict().keys()


def test_in_bfloat16_the_losses_and_the_weights_stay_in_float32(bench: Any) -> None:
    seen: set[tuple[torch.dtype, torch.dtype]] = set()

    class Listening(Supervised):
        def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
            losses = super().losses(student, teacher, batch)
            seen.add((student.logits.dtype, losses["hard"].dtype))
            return losses

    model = bench.train(bench.cnn(), method=Listening(), precision="bfloat16")
    assert seen == {(torch.bfloat16, torch.float32)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_attempt_that_was_superseded_publishes_nothing(bench: Any) -> None:
    folder = bench.context("train-0").folder
    claim_attempt(folder, "first")
    steps = iter(range(1, STEPS + 1))

    def lose_the_stage_then_stop() -> bool:
        step = next(steps)
        if step == 6:
            claim_attempt(folder, "second")
        return step == 7

    with pytest.raises(StageError, match="another driver took over"):
        bench.train(bench.mlp(), attempt="first", should_stop=lose_the_stage_then_stop)
    assert [path.name for path in folder.path.iterdir()] == ["attempt.json"]


def test_a_training_without_validation_samples_reports_none(bench: Any, tmp_path: Path) -> None:
    context = bench.context("train-0")
    loop.fit(bench.mlp(), Supervised(), bench.transfer(), bench.split(1, 0), bench.settings(), context)
    context.flush()
    assert not any(key.startswith("validation") for line in bench.metrics() for key in line)


@pytest.mark.parametrize(
    ("metric", "sign"), [("accuracy", 1), ("loss", -1), ("macro_f1", 1), ("errors", -1), ("ece", -1)]
)
def test_early_stopping_ends_after_its_patience_and_keeps_the_best_epoch(
    bench: Any, metric: str, sign: int
) -> None:
    stopping = {"patience": 3, "metric": metric}
    stopped = bench.train(bench.mlp(), "train-1", epochs=60, early_stopping=stopping)
    values = [sign * line[f"validation/{metric}"] for line in bench.metrics("train-1")]
    best_epoch = values.index(max(values)) + 1
    assert len(values) == best_epoch + 3 < 60
    assert same_weights(stopped, bench.train(bench.mlp(), "train-2", epochs=best_epoch))


def test_early_stopping_keeps_the_best_epoch_of_a_training_that_it_did_not_stop(bench: Any) -> None:
    bench.config = {"optimizer": {"name": "sgd", "learning_rate": 0.9}}
    kept = bench.train(bench.mlp(), "train-1", epochs=6, early_stopping={"patience": 6, "metric": "loss"})
    losses = [line["validation/loss"] for line in bench.metrics("train-1")]
    assert len(losses) == 6
    assert losses[-1] > min(losses)
    best_epoch = losses.index(min(losses)) + 1
    assert same_weights(kept, bench.train(bench.mlp(), "train-2", epochs=best_epoch))


def test_early_stopping_without_validation_samples_is_refused(bench: Any) -> None:
    settings = bench.settings(early_stopping={"patience": 1})
    with pytest.raises(StageError, match="validation_fraction"):
        loop.fit(bench.mlp(), Supervised(), bench.transfer(), bench.split(1, 0), settings, bench.context("a"))


def test_the_training_accuracy_is_that_of_the_batches_as_they_were_trained_on(bench: Any) -> None:
    seen: list[float] = []

    class Listening(Supervised):
        def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
            seen.append((student.logits.argmax(dim=1) == batch.labels).double().mean().item())
            return super().losses(student, teacher, batch)

    bench.train(bench.mlp(), method=Listening())
    for epoch, line in enumerate(bench.metrics()):
        *whole, last = seen[5 * epoch : 5 * epoch + 5]
        assert line["train/accuracy"] == pytest.approx((5 * sum(whole) + 3 * last) / 23)


@pytest.mark.parametrize("augment", [(), (MixupConfig(alpha=0.4),)])
def test_a_training_without_labels_of_its_own_tells_no_accuracy(bench: Any, augment: Any) -> None:
    bench.augment = augment
    config = bench.settings().replace(transfer=TransferConfig(labelled=bool(augment)))
    context = bench.context("train-0")
    loop.fit(bench.mlp(), Supervised(), bench.transfer(), bench.split(1, 12), config, context)
    context.flush()
    assert "train/accuracy" not in bench.metrics()[0]
    assert "train/loss/hard" in bench.metrics()[0]
