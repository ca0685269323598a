"""A training's whole step as one graph of kernels, recorded once and replayed with one launch.

A small network's step costs its launches: some hundreds of kernels at 10 µs of Python each, whatever their size. What
is recorded is the loop's own step. It makes its batch by itself, from positions in memory that stays where it is, and
all that changes from step to step lies in tensors: positions, the view's keys, learning rates. What goes by the epoch
(`batch.epoch`) is recorded again in every epoch that somebody asks for it.

The plain step is the reference. A replay is compared with it bit by bit, at other samples than it was recorded with and
in another epoch; whatever is refused, fails or differs leaves the training as it was, says why, and goes on plainly.
"""

import gc
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.plan.config import configs_in
from raydistill.tasks.splits import is_resident
from raydistill.training.counter_random import StaticView
from raydistill.training.data import Batch, TransferSet
from raydistill.training.method import Method
from raydistill.training.running_losses import Told
from raydistill.training.step_state import State, StepState

SETTLING = 5  # steps until memory is allocated and algorithms are chosen
MEASURED = 5  # steps of which the fastest says how long one takes
WORTH = 0.9  # of a plain step's time, at most: a graph holds as much memory again
LONGEST = 0.05  # seconds of a step, beyond which launches are a small part of it
FEWEST = 100  # steps of a training; recording takes as long as some of them
EPOCHS_COMPARED = 2  # in which the first replay is compared with the plain step
REPEATS = 3  # of a plain step from which a replay differs, until that is the replay's fault
SAME_STEP = 0.001  # of a step's length, where kernels do not repeat themselves: rounding is a millionth of it

TOLD = "told"

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """Why a step cannot be replayed, in words for the log."""


def records(device: torch.device | str) -> bool:
    """Whether what is launched on a device can be recorded as a graph."""
    return hasattr(torch.get_device_module(torch.device(device)), "CUDAGraph")


def hindrance(
    config: TrainingConfig,
    method: Method,
    transfer: TransferSet,
    *,
    world: int,
    rates_on_device: bool,
    steps: int,
) -> str | None:
    """Why the steps of a training, of which `steps` are left, are not captured, as far as that is known before it."""
    tried = config.capture == "auto"
    is_scaled, is_own = config.precision == "float16", any(part.own_modules for _, part in configs_in(config))
    reasons = (
        (config.capture == "off", "`capture` is off"),
        (world > 1, "several workers exchange their gradients"),
        (config.accumulate is not None, "a step is made of several batches (`accumulate`)"),
        (config.compile, "compiled steps are launched in their own way (`compile`)"),
        (is_scaled, "the scale of the gradients is the host's business (`precision: float16`)"),
        (not is_resident(transfer.split), "its samples do not lie in the device's memory"),
        (not rates_on_device, "its optimizer takes the learning rate from the host"),
        (method.waits_for_device, "its method asks the device for numbers in every step"),
        (bool(method.host_work), f"its method works on the host: {method.host_work}"),
        (tried and steps < FEWEST, f"its {steps} steps are too few to be worth it"),
        (tried and is_own, "code of yours may count or draw on the host; if it does not: `capture: on`"),
    )
    return next((reason for holds, reason in reasons if holds), None)


class WatchedBatch(Batch):
    """A batch that notes whether anybody asks for its epoch, a number that a recording would keep for ever."""

    @classmethod
    def of(cls, batch: Batch, note: Callable[[], None]) -> "WatchedBatch":
        watched = object.__new__(cls)
        watched.__dict__.update(batch.__dict__, _note=note)
        return watched

    def __getattribute__(self, name: str) -> Any:
        if name == "epoch" and (note := object.__getattribute__(self, "__dict__").get("_note")):
            note()
        return super().__getattribute__(name)


class StaticStep:
    """A step of `size` samples on tensors that stay where they are: the same code, and the same bytes, as any step."""

    def __init__(
        self, update: Callable[[Batch], Told], transfer: TransferSet, size: int, device: torch.device
    ) -> None:
        self._update, self._transfer = update, transfer
        self.size, self.epoch = size, -1
        self.rows = torch.zeros(size, dtype=torch.int64, device=device)
        self.view = StaticView(device)
        self.asks_epoch = False

    def place(self, rows: Tensor, epoch: int) -> None:
        """Write what the next step is of: positions (size,) on the device, of an epoch."""
        self.rows.copy_(rows)
        if epoch != self.epoch:
            self.epoch = epoch
            self.view.write(self._transfer.views.of_epoch(epoch))

    def run(self) -> Told:
        """Make the step; nothing that this does on the host depends on what was placed, but for the epoch."""
        (batch,) = self._transfer.batches([self.rows], self.view, epoch=self.epoch)
        return self._update(WatchedBatch.of(batch, self._note))

    def _note(self) -> None:
        self.asks_epoch = True


class Recorder:
    """Records what is launched on a device; by torch's names for CUDA, which other devices' modules have too."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, torch.get_device_module(device)
        self._stream = self._module.Stream()

    def beside(self, run: Callable[[], Told]) -> Told:
        """Run on the stream that is recorded from: what is chosen and allocated for a stream is so before."""
        current = self._module.current_stream()
        self._stream.wait_stream(current)
        with self._module.stream(self._stream):
            told = run()
        current.wait_stream(self._stream)
        return told

    def record(self, run: Callable[[], Told]) -> tuple[Told, Callable[[], None]]:
        """What `run` would tell, in memory that each replay writes anew; and how to replay it. Nothing is computed."""
        graph = self._module.CUDAGraph()
        with (
            uncollected(),
            put_right(self._device) as own,
            self._module.graph(graph, stream=self._stream, **own),
        ):
            told = run()
        return told, graph.replay

    @contextmanager
    def refusing_waits(self) -> Iterator[None]:
        """Inside, a wait of the host is an error: in a recording it would spoil more than the recording."""
        before = self._module.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not find all of them
            self._module.set_sync_debug_mode("error")
        try:
            yield
        finally:
            self._module.set_sync_debug_mode(before)

    def wait(self) -> None:
        self._module.synchronize()


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage is collected before, none inside: what a graph that is gone held of the device cannot be given back while
    another is recorded."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def put_right(device: torch.device) -> Iterator[dict[str, Any]]:
    """Inside, a recording may break off, as when memory runs out; gives what else it is to be told.

    That leaves the process of torch before 2.12 on another stream, with a generator that draws no more and an allocator
    that still records. Afterwards all three are as they were.
    """
    module: Any = torch.get_device_module(device)
    if not hasattr(module, "graph_pool_handle"):
        yield {}
        return
    stream, pool = module.current_stream(device), module.graph_pool_handle()
    index = stream.device_index
    generator = module.default_generators[index]
    numbers = generator.get_state()
    try:
        yield {"pool": pool}
    except BaseException:
        module.set_stream(stream)
        generator.graphsafe_set_state(torch.Generator(device))
        generator.set_state(numbers)
        with suppress(RuntimeError):  # a later torch has done so
            for done in ("endAllocateToPool", "releasePool"):
                getattr(torch._C, f"_{device.type}_{done}")(index, pool)
        raise


@dataclass
class Recording:
    """A recorded step, good for one `setting` of what it took from the host."""

    setting: object
    told: Told
    replay: Callable[[], None]
    gradients: list[Tensor | None]
    compared_in: set[int] = field(default_factory=set)


class CapturedStep:
    """The steps of a training that are all alike: tried for some steps, and replayed from then on if that is faster.

    `plain` makes a step of the loop from positions on the CPU in an epoch, `seed` seeds the generators for what comes.
    """

    def __init__(
        self,
        static: StaticStep,
        learner: nn.Module,
        optimizer: Optimizer,
        *,
        plain: Callable[[Tensor, int], Told],
        seed: Callable[[], None],
        recorder: Recorder,
        steps_per_epoch: int,
        asked_for: bool,
    ) -> None:
        self._static, self._state = static, StepState(learner, optimizer)
        self._plain, self._seed, self._recorder, self._asked_for = plain, seed, recorder, asked_for
        self._steps_per_epoch = steps_per_epoch
        self._parameters = list(learner.parameters())
        self._recording: Recording | None = None
        self._phase = 0
        self._settled, self._was_plain, self._decided, self._given_up = 0, False, False, False
        self._plain_seconds: list[float] = []
        self._replay_seconds: list[float] = []
        self._recording_seconds: list[float] = []

    def begin_epoch(self, phase: int) -> None:
        """`phase`: another one where optimizer or method are told other numbers (`changes`)."""
        self._phase = phase

    def takes(self, rows: Tensor) -> bool:
        """Whether the step of these rows is to be made here; asked once for each step."""
        if self._given_up or len(rows) != self._static.size:
            self._was_plain = True
            return False
        self._settled += 1
        return self._settled > SETTLING

    def step(self, rows: Tensor, there: Tensor, epoch: int) -> Told:
        """Make the step of positions that are given on the CPU and on the device."""
        self._static.place(there, epoch)
        if self._decided and self._is_current() and not self._to_compare(epoch):
            return self._replay()
        before = self._state.snapshot()
        try:
            return self._try(epoch)
        # Whatever it is: the plain step makes it again, and if it is a mistake of the training it comes again there.
        except Exception as error:
            self._state.restore(before)
            self._give_up(str(error).strip().partition("\n")[0] or type(error).__name__)
            return self._plain(rows, epoch)

    def _try(self, epoch: int) -> Told:
        if len(self._plain_seconds) < MEASURED:
            return self._timed(self._run_plainly, self._plain_seconds)
        if not self._decided and not self._asked_for and (took := min(self._plain_seconds)) > LONGEST:
            raise RefusedError(f"a step takes {1e3 * took:.0f} ms, of which launches are a small part")
        if not self._is_current():
            return self._timed(self._record, self._recording_seconds)
        if self._to_compare(epoch):
            return self._compare(epoch)
        told = self._timed(self._replay, self._replay_seconds)
        if len(self._replay_seconds) == MEASURED:
            self._decide()
        return told

    def _decide(self) -> None:
        plain, replayed = min(self._plain_seconds), min(self._replay_seconds)
        times = f"a step takes {1e3 * plain:.2f} ms, replayed {1e3 * replayed:.2f} ms"
        if self._static.asks_epoch:
            again = self._recording_seconds[-1] + 2 * plain  # recorded and compared in every epoch
            times += f", and recording it {1e3 * again:.0f} ms in each of the epochs"
            replayed += again / self._steps_per_epoch
        if replayed > WORTH * plain and not self._asked_for:
            raise RefusedError(times)
        self._decided = True
        log.info("steps are captured: %s", times)

    def _give_up(self, reason: str) -> None:
        self._recording, self._given_up = None, True
        log.info("steps are not captured: %s", reason)

    def _is_current(self) -> bool:
        return self._recording is not None and self._recording.setting == self._setting()

    def _setting(self) -> object:
        """All that a recording took from the host and that may change; what else it took is the same in all steps."""
        return self._phase, self._static.epoch if self._static.asks_epoch else None

    def _run_plainly(self) -> Told:
        self._seed()
        self._was_plain = True
        places = self._places()
        # The first one may fetch what stays on the device from then on.
        with self._recorder.refusing_waits() if self._plain_seconds else nullcontext():
            told = self._recorder.beside(self._static.run)
        if self._places() != places:
            raise RefusedError("a step puts other tensors in the place of weights, statistics or momentum")
        return told

    def _record(self) -> Told:
        self._recording = None  # its memory first
        told = self._run_plainly()  # this step; what is recorded computes nothing
        own = self._gradients()
        again, replay = self._recorder.record(self._static.run)
        self._recording = Recording(self._setting(), again, replay, self._gradients())
        self._put(own)
        return told

    def _gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self._parameters]

    def _put(self, gradients: Iterable[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _to_compare(self, epoch: int) -> bool:
        assert self._recording is not None
        compared = self._recording.compared_in
        return len(compared) < EPOCHS_COMPARED and epoch not in compared

    def _compare(self, epoch: int) -> Told:
        """Make the step plainly and by the recording, from the same state."""
        before = self._state.snapshot()
        expected = self._made_by(self._static.run)
        self._state.restore(before)
        told = self._replay()
        found = self._state.snapshot() | {TOLD: told.values}
        if not _equal(found, expected):
            if self._repeats_itself(before, expected):
                raise RefusedError("a replayed step differs from the plain one")
            if not _is_near(found, expected, before):
                raise RefusedError("a replayed step differs from the plain one by more than rounding")
            self._state.restore(found)
        assert self._recording is not None
        self._recording.compared_in.add(epoch)
        return told

    def _repeats_itself(self, before: State, expected: State) -> bool:
        """Whether the plain step always comes to the same place; where kernels add in any order, it may by chance."""
        for _ in range(REPEATS):
            self._state.restore(before)
            if not _equal(self._made_by(self._static.run), expected):
                return False
        return True

    def _made_by(self, run: Callable[[], Told]) -> State:
        self._seed()
        self._was_plain = True
        told = run()
        return self._state.snapshot() | {TOLD: told.values}

    def _replay(self) -> Told:
        recording = self._recording
        assert recording is not None
        self._seed()
        recording.replay()
        if self._was_plain:  # and has made gradients of its own
            self._put(recording.gradients)
            self._was_plain = False
        return replace(recording.told, values=recording.told.values.clone())

    def _timed(self, make: Callable[[], Told], seconds: list[float]) -> Told:
        self._recorder.wait()
        began = time.perf_counter()
        told = make()
        self._recorder.wait()
        seconds.append(time.perf_counter() - began)
        return told

    def _places(self) -> dict[Any, int]:
        return {key: tensor.data_ptr() for key, tensor in self._state.tensors().items()}


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def _is_near(found: State, expected: State, before: State) -> bool:
    """Whether two steps from one state lead to the same place, by the length of the step."""
    return _distance(found, expected, before) <= SAME_STEP * _distance(expected, before, before)


def _distance(one: State, other: State, keys: Iterable[object]) -> float:
    squares = [(one[key].double() - other[key].double()).square().sum() for key in keys]
    return float(torch.stack(squares).sum().sqrt())
