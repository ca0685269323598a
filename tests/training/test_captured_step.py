"""A step on tensors that stay where they are makes the bytes of the plain one, and whatever goes wrong with it leaves a
training as it was. On the CPU, where nothing is recorded: what stands for a replay makes the step once more."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.augmentations import (
    CutmixConfig,
    EraseConfig,
    FlipConfig,
    MixupConfig,
    PadCropConfig,
    RandAugmentConfig,
    ResizedCropConfig,
)
from raydistill.methods.supervised import Supervised
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training import captured_step, loop
from raydistill.training.data import Batch
from raydistill.training.method import Method
from raydistill.training.running_losses import Told

SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


class Repeating:
    """What a recorder does, by the function that was to be recorded."""

    replays = 0

    def __init__(self, device: torch.device) -> None:
        pass

    def beside(self, run: Callable[[], Told]) -> Told:
        return run()

    def record(self, run: Callable[[], Told]) -> tuple[Told, Callable[[], None]]:
        told = Told((), torch.zeros(0), ())

        def replay() -> None:
            Repeating.replays += 1
            for name, value in vars(run()).items():
                object.__setattr__(told, name, value)

        return told, replay

    def refusing_waits(self) -> Any:
        return nullcontext()

    def wait(self) -> None:
        pass


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Repeating]:
    """Makes the CPU a device that records."""
    monkeypatch.setattr(loop, "records", lambda device: True)
    monkeypatch.setattr(loop, "Recorder", Repeating)
    monkeypatch.setattr(captured_step, "SETTLING", 2)
    monkeypatch.setattr(captured_step, "MEASURED", 2)
    monkeypatch.setattr(Repeating, "replays", 0)
    return Repeating


class Ramped(Method):
    """A loss whose weight goes by the epoch."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        hard = Supervised().losses(student, teacher, batch)
        return hard | {"pull": 0.01 * batch.epoch * student.logits.square().mean()}


class Late(Method):
    """A module of its own, that has no gradient in the first epochs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.connector = nn.Linear(3, 3)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        hard = Supervised().losses(student, teacher, batch)
        logits = student.logits if batch.epoch < 3 else self.connector(student.logits)
        return hard | {"connected": F.cross_entropy(logits, batch.labels)}


def plainly(bench: Any) -> dict[str, Any]:
    return {}


def scheduled_and_bounded(bench: Any) -> dict[str, Any]:
    bench.config = {"optimizer": SGD, "clip_norm": 0.5, "max_norm": 0.8, "label_smoothing": 0.1}
    bench.config |= {"schedule": {"name": "one_cycle"}, "ema": {"decay": 0.8}}
    return {}


def adamw_that_changes(bench: Any) -> dict[str, Any]:
    bench.config = {"optimizer": {"name": "adamw"}, "schedule": {"name": "cosine", "warmup": 0.2}}
    bench.config |= {"changes": [{"after": 4, "set": {"optimizer.weight_decay": 0.5}}], "layer_decay": 0.8}
    return {}


def ramped(bench: Any) -> dict[str, Any]:
    return {"method": Ramped()}


def late_gradients(bench: Any) -> dict[str, Any]:
    bench.config = {"optimizer": SGD}
    return {"method": Late()}


def drawn_views(bench: Any) -> dict[str, Any]:
    bench.augment = (PadCropConfig(padding=2), FlipConfig(), RandAugmentConfig(), EraseConfig())
    return {}


def mixed_crops(bench: Any) -> dict[str, Any]:
    bench.augment = (ResizedCropConfig(), MixupConfig(alpha=0.4), CutmixConfig())
    return {}


def channels_last_in_bfloat16(bench: Any) -> dict[str, Any]:
    bench.config, bench.channels_last = {"optimizer": SGD, "precision": "bfloat16"}, True
    return {}


RECIPES = [
    plainly,
    scheduled_and_bounded,
    adamw_that_changes,
    ramped,
    late_gradients,
    drawn_views,
    mixed_crops,
    channels_last_in_bfloat16,
]


def with_dropout(bench: Any) -> nn.Module:
    return nn.Sequential(bench.cnn()[:4], nn.Dropout(0.3), bench.cnn()[4])


def same(one: nn.Module, other: nn.Module) -> bool:
    here, there = one.state_dict(), other.state_dict()
    return all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_makes_the_bytes_of_the_plain_step(
    bench: Any, recorder: Any, recipe: Callable[[Any], Any]
) -> None:
    """With a short batch at every epoch's end; and when it is stopped in the middle, and goes on."""
    recipe(bench)
    plain = bench.train(with_dropout(bench), "plain", epochs=8, capture="off", **recipe(bench))
    assert not recorder.replays
    captured = bench.train(with_dropout(bench), "captured", epochs=8, capture="on", **recipe(bench))
    assert recorder.replays > 10
    assert same(plain, captured)
    assert bench.metrics("plain") == bench.metrics("captured")
    bench.stopped(with_dropout(bench), 17, "stopped", epochs=8, capture="on", **recipe(bench))
    assert same(plain, bench.train(with_dropout(bench), "stopped", epochs=8, capture="on", **recipe(bench)))
    assert bench.metrics("plain") == bench.metrics("stopped")


def test_a_training_that_is_over_leaves_no_recording_to_the_collector(bench: Any, recorder: Any) -> None:
    """A graph's memory is of the device, which the next training of the process wants whole."""
    gc.collect()
    gc.disable()
    try:
        bench.train(bench.cnn(), "captured", epochs=4, capture="on")
        left = [each for each in gc.get_objects() if type(each) is captured_step.Recording]
    finally:
        gc.enable()
    assert recorder.replays
    assert not left


class BrokenOff:
    """What torch before 2.12 leaves behind of CUDA's when a recording is broken off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_recent: bool) -> None:
        self.stream, self.numbers, self.pools, self.states = "side", "used up", ["pool"], 0
        before = SimpleNamespace(device_index=0, name="main")
        generator = SimpleNamespace(
            get_state=lambda: "numbers", set_state=self.set_state, graphsafe_set_state=self.renew
        )
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: before)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream.name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "default_generators", [generator])
        monkeypatch.setattr(torch, "Generator", lambda device: "new")
        end = self.refuse if is_recent else lambda index, pool: self.pools.remove(pool)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: None, raising=False)

    def renew(self, other: str) -> None:
        self.states += other == "new"

    def set_state(self, numbers: str) -> None:
        assert self.states, "the old state draws no more"
        self.numbers = numbers

    def refuse(self, index: int, pool: str) -> None:
        raise RuntimeError("not currently recording to the pool")


@pytest.mark.parametrize("is_recent", [True, False])
def test_a_recording_that_breaks_off_leaves_the_process_as_it_was(
    monkeypatch: pytest.MonkeyPatch, is_recent: bool
) -> None:
    left = BrokenOff(monkeypatch, is_recent=is_recent)
    told: list[Any] = []

    def record() -> None:
        with captured_step.put_right(torch.device("cuda")) as own:
            told.append(own)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        record()
    assert told == [{"pool": "pool"}]
    assert (left.stream, left.numbers) == ("main", "numbers")
    assert left.pools == (["pool"] if is_recent else [])


class Refusing(Repeating):
    """The device refuses to record, when all has been run that is to be recorded."""

    def record(self, run: Callable[[], Told]) -> tuple[Told, Callable[[], None]]:
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nmore of this")


class Stale(Repeating):
    """A replay reads what the step before it was of."""

    def record(self, run: Callable[[], Told]) -> tuple[Told, Callable[[], None]]:
        static: Any = run.__self__  # type: ignore[attr-defined]
        rows = static.rows.clone()
        told, repeat = super().record(run)

        def replay() -> None:
            static.rows.copy_(rows)
            repeat()

        return told, replay


class PutsAnother(nn.Module):
    """A layer that replaces its buffer in every step in place of writing into it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, logits: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * logits.detach().mean(dim=0)
        return logits - self.mean


class Trembling(nn.Module):
    """A layer that is never the same twice, as kernels are that add up in the order in which threads come."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size, self.generator = size, torch.Generator()

    def forward(self, logits: Tensor) -> Tensor:
        return logits * (1 + self.size * torch.rand((), generator=self.generator))


class LooksAtRows(Method):
    """Asks for numbers as only the CPU has them, and as a device gives them only to who waits."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        if not isinstance(batch.view, int):
            raise TypeError("rows lie elsewhere")
        return Supervised().losses(student, teacher, batch)


def log_of(bench: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "captured" in record.getMessage()]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capture": "off"}, "`capture` is off"),
        ({"accumulate": 2}, "a step is made of several batches (`accumulate`)"),
        (
            {"precision": "float16"},
            "the scale of the gradients is the host's business (`precision: float16`)",
        ),
        ({"capture": "auto"}, "its 15 steps are too few to be worth it"),
    ],
)
def test_what_stays_as_it_is_says_why(
    bench: Any, recorder: Any, caplog: Any, changes: dict[str, Any], reason: str
) -> None:
    with caplog.at_level("INFO", logger="raydistill"):
        bench.train(bench.cnn(), **{"capture": "on"} | changes)
    assert log_of(bench, caplog) == [f"steps are not captured: {reason}"]
    assert not recorder.replays


@pytest.mark.parametrize(("slow", "is_captured"), [(0.0, False), (0.02, True), (0.06, False)])
def test_by_itself_it_captures_what_is_faster_for_it(
    bench: Any, recorder: Any, monkeypatch: Any, caplog: Any, slow: float, is_captured: bool
) -> None:
    """Steps take `slow` seconds longer than their replays: none, some, or so many that launches do not count."""
    now = [0.0]
    monkeypatch.setattr(captured_step.time, "perf_counter", lambda: now[0])

    def beside(own: Repeating, run: Callable[[], Told]) -> Told:
        now[0] += 0.001 + slow
        return run()

    record = Repeating.record

    def quick(own: Repeating, run: Callable[[], Told]) -> tuple[Told, Callable[[], None]]:
        told, repeat = record(own, run)

        def replay() -> None:
            now[0] += 0.001
            repeat()

        return told, replay

    monkeypatch.setattr(Repeating, "beside", beside)
    monkeypatch.setattr(Repeating, "record", quick)
    monkeypatch.setattr(captured_step, "FEWEST", 0)
    with caplog.at_level("INFO", logger="raydistill"):
        bench.train(bench.cnn(), capture="auto")
    (line,) = log_of(bench, caplog)
    assert line.startswith("steps are captured") == is_captured
    assert recorder.replays > 3 if is_captured else recorder.replays <= 3


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Refusing, "operation not permitted when stream is capturing"), (Stale, "a replayed step differs")],
)
def test_what_cannot_be_recorded_is_as_if_it_had_not_been_tried(
    bench: Any, recorder: Any, monkeypatch: Any, caplog: Any, kind: type[Repeating], reason: str
) -> None:
    scheduled_and_bounded(bench)
    plain = bench.train(with_dropout(bench), "plain", capture="off")
    monkeypatch.setattr(loop, "Recorder", kind)
    caplog.clear()
    with caplog.at_level("INFO", logger="raydistill"):
        assert same(plain, bench.train(with_dropout(bench), "captured", capture="on"))
    (line,) = log_of(bench, caplog)
    assert line.startswith(f"steps are not captured: {reason}")
    assert bench.metrics("plain") == bench.metrics("captured")


def test_a_step_that_fails_on_tensors_in_place_is_made_plainly(
    bench: Any, recorder: Any, caplog: Any
) -> None:
    plain = bench.train(with_dropout(bench), "plain", capture="off", method=LooksAtRows())
    caplog.clear()
    with caplog.at_level("INFO", logger="raydistill"):
        captured = bench.train(with_dropout(bench), "captured", capture="on", method=LooksAtRows())
    assert same(plain, captured)
    assert log_of(bench, caplog) == ["steps are not captured: rows lie elsewhere"]


def test_a_buffer_that_is_replaced_is_not_recorded(bench: Any, recorder: Any, caplog: Any) -> None:
    def model() -> nn.Module:
        return nn.Sequential(bench.cnn(), PutsAnother())

    plain = bench.train(model(), "plain", capture="off")
    caplog.clear()
    with caplog.at_level("INFO", logger="raydistill"):
        assert same(plain, bench.train(model(), "captured", capture="on"))
    (line,) = log_of(bench, caplog)
    assert "in the place of weights" in line


@pytest.mark.parametrize(("size", "is_captured"), [(1e-6, True), (1.0, False)])
def test_kernels_that_do_not_repeat_themselves_are_told_from_a_recording_that_is_wrong(
    bench: Any, recorder: Any, caplog: Any, size: float, is_captured: bool
) -> None:
    with caplog.at_level("INFO", logger="raydistill"):
        bench.train(nn.Sequential(bench.cnn(), Trembling(size)), capture="on")
    (line,) = log_of(bench, caplog)
    assert line.startswith("steps are captured") == is_captured
    assert is_captured or line.endswith("differs from the plain one by more than rounding")
