"""Replicas that train as one batched model, in one process: each is still a stage of its own, with its own folder, log,
record and end.

The first one begins by itself and shows whether there is anything to gain; only then the others are prepared. They
make one step both ways, and some that are timed. Where there is nothing to gain all leave, after some steps at most,
and each is started again by itself.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from raydistill.errors import StageStopped, StoreError
from raydistill.execution.request import Outcome, StageRequest
from raydistill.execution.run_stage import Attempt, prepare_context
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.lookup import load_object
from raydistill.runs.record import summary_of
from raydistill.stages.training_stage import PreparedTraining
from raydistill.training.loop import Training, Turn
from raydistill.training.stacking import (
    FEWEST,
    LONGEST,
    MEASURED,
    WORTH,
    RefusedError,
    Stack,
    hindrance,
    is_elementwise,
    plain_steps,
    timed,
    try_stack,
)

log = logging.getLogger(__name__)


def run_stack(
    requests: Sequence[StageRequest],
    *,
    should_stop: Callable[[str], bool] = lambda attempt: False,
    on_report: Callable[[str, Mapping[str, float]], None] | None = None,
    device: str = "cpu",
    node_id: str = "",
) -> list[Outcome]:
    """Run stages that are alike but for their seeds; how each ended, in their order. `should_stop` is asked with an
    attempt, `on_report` hears the name of a stage and what it reports."""
    with ExitStack() as folders:
        run = _Run(folders, requests, should_stop, on_report, device, node_id)
        run.run()
        for member in run.members:
            member.attempt.do_afterwards()
    return run.outcomes()


class _Member:
    """One of the stages: what is done of it, and the step that it waits for; None when it waits for none."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.is_joining = False
        self.turn: Turn | None = None
        self.training: Training | None = None
        self.stack: Stack | None = None
        self.prepared: PreparedTraining
        self._turns: Iterator[Turn]

    @property
    def step(self) -> int:
        """How many steps were made."""
        return 0 if self.training is None else self.training.progress.step

    def prepare(self, node_id: str, lead: "_Member | None") -> None:
        """All that comes before a training; the data is that of the first one."""
        self._do(lambda: self.attempt.begin(node_id))
        self._do(lambda: self._prepare(lead))

    def begin(self) -> None:
        """Come to the first step that is left."""
        self._do(self._begin)

    def make_step(self) -> float:
        """Make the step that is due by itself, and come to the next; the seconds that it took."""
        turn, seconds = self.turn, [0.0]
        assert turn is not None
        self._do(lambda: seconds.append(timed(self._device, turn.make)))
        self.go_on()
        return seconds[-1]

    def go_on(self) -> None:
        """Come to the next step, once this one was made, or to the end."""
        self._do(self._go_on)

    def run_alone(self) -> None:
        """Make all steps that are left by itself."""
        while self.turn is not None:
            self._do(self.turn.make)
            self.go_on()

    def leave(self, reason: str) -> None:
        """Another attempt makes what is left."""
        self.turn = None
        if self.attempt.outcome is None:
            self.attempt.leave(reason)

    @property
    def _device(self) -> torch.device:
        return torch.device(self.attempt.context.device)

    def _do(self, work: Callable[[], None]) -> None:
        self.attempt.do(lambda: self._try(work), passing=(RefusedError,))
        if self.attempt.outcome is not None:
            self.turn = None

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StageStopped:
            raise
        except Exception as error:
            # Alone it might not have failed; if it would, it says so when it begins by itself.
            if self.is_joining or isinstance(error, MemoryError | torch.OutOfMemoryError):
                reason = f"`{self.attempt.request.name}` fails beside others: {summary_of(error)}"
                raise RefusedError(reason) from error
            raise

    def _prepare(self, lead: "_Member | None") -> None:
        context = self.attempt.context
        context.data = None if lead is None else lead.prepared.data
        config = prepare_context(self.attempt.request, context)
        assert isinstance(config, TrainingConfig)
        self.prepared = load_object(config.prepares)(config, context)
        if lead is not None:
            self.prepared = self.prepared.sharing(lead.prepared)

    def _begin(self) -> None:
        self.training = self.prepared.training()
        self._turns = self.training.turns()
        self._go_on()

    def _go_on(self) -> None:
        self.turn = next(self._turns, None)
        if self.turn is None:
            if self.stack is not None:
                self.stack.dissolve()  # what is stored lies in memory of its own
            self.attempt.finish(self.prepared.store())


class _Run:
    """One run of the stages of a stack."""

    def __init__(
        self,
        folders: ExitStack,
        requests: Sequence[StageRequest],
        should_stop: Callable[[str], bool],
        on_report: Callable[[str, Mapping[str, float]], None] | None,
        device: str,
        node_id: str,
    ) -> None:
        self._folders, self._requests = folders, requests
        self._should_stop, self._on_report = should_stop, on_report
        self._device, self._node_id = device, node_id
        self._plain = 0.0
        self._reason = "the first of them ended before it was tried"
        self.members: list[_Member] = []

    def run(self) -> None:
        """The story: the first by itself, the others, all together; who is left over by himself."""
        try:
            self._try_first(self._open(self._requests[0]))
            for request in self._requests[1:]:
                self._join(request)
            self._catch_up()
            self._train()
        except RefusedError as error:
            self._reason = str(error)
            # Also the first: what it would do here for long, others of this call would wait for.
            for member in self.members:
                member.leave(self._reason)

    def outcomes(self) -> list[Outcome]:
        """In the order of the requests; who did not begin is to begin by himself."""
        known = {member.attempt.request.name: member.attempt.outcome for member in self.members}
        return [known.get(request.name) or self._not_begun(request) for request in self._requests]

    def _not_begun(self, request: StageRequest) -> Outcome:
        is_asked = self._should_stop(request.attempt)
        return Outcome("stopped" if is_asked else "apart", error=self._reason)

    def _open(self, request: StageRequest) -> _Member:
        attempt = Attempt(
            request,
            lambda: self._should_stop(request.attempt),
            self._on_report and partial(self._on_report, request.name),
            device=self._device,
        )
        attempt.clock.pause()
        self._folders.enter_context(attempt.opened())
        self.members.append(member := _Member(attempt))
        return member

    def _try_first(self, first: _Member) -> None:
        """Prepare it, and see how long its steps take; `RefusedError` where there is nothing to gain."""
        first.prepare(self._node_id, None)
        if first.attempt.outcome is not None:
            raise RefusedError(self._reason)
        prepared = first.prepared
        if reason := hindrance(prepared.method, prepared.model, prepared.transfer):
            raise RefusedError(reason)
        first.begin()
        if first.training is None or first.turn is None:
            raise RefusedError(self._reason)
        if not is_elementwise(first.training.optimizer):
            raise RefusedError("its optimizer may look at other weights beside each")
        if self._is_tried and (left := first.training.steps - first.step) < FEWEST:
            raise RefusedError(f"its {left} steps are too few to be worth it")
        count = plain_steps(torch.device(self._device))
        seconds = [first.make_step() for _ in range(count) if first.turn is not None]
        self._plain = min(seconds[-MEASURED:])
        if self._is_tried and self._plain > LONGEST:
            raise RefusedError(f"a step takes {1e3 * self._plain:.0f} ms, of which launches are a small part")

    def _join(self, request: StageRequest) -> None:
        """Let another one come to its first step; who cannot be opened shows why when he begins by himself."""
        try:
            member = self._open(request)
        except StoreError as error:
            log.warning("%s: %s", request.name, error.message)
            return
        member.is_joining = True
        member.prepare(self._node_id, self.members[0])
        member.begin()

    def _catch_up(self) -> None:
        """Bring all to the same step: each has made one, so that its optimizer has met all weights."""
        for member in self.members[1:]:
            if member.turn is not None:
                member.make_step()
        # A checkpoint of each is written for itself: after a kill they are not all of the same step.
        furthest = max((member.step for member in self._living()), default=0)
        for member in self.members:
            while member.turn is not None and member.step < furthest:
                member.make_step()
        if len(self._living()) < 2:
            raise RefusedError("the others have ended")

    def _train(self) -> None:
        living = self._living()
        with self._giving_up():
            stack = try_stack(_trainings(living), _turns(living))
        for member in living:
            member.is_joining = False
            member.attempt.context.stacked = len(living)
            member.stack = stack
        for member in living:
            member.go_on()
        seconds: list[float] = []
        try:
            while len(living := self._living()) > 1:
                if len(living) < len(stack.trainings):  # some have ended
                    stack = self._restacked(stack, living)
                is_timed = len(seconds) < MEASURED
                self._step(stack, living, seconds if is_timed else None)
                if is_timed and len(seconds) == MEASURED:
                    self._decide(min(seconds), living)
        finally:
            stack.dissolve()
        for member in living:
            member.run_alone()

    def _restacked(self, stack: Stack, living: Sequence[_Member]) -> Stack:
        stack.dissolve()
        with self._giving_up():
            stack = Stack(_trainings(living))
        for member in living:
            member.stack = stack
        return stack

    def _step(self, stack: Stack, living: Sequence[_Member], seconds: list[float] | None) -> None:
        """The step of all, and what goes with it for each. Where `seconds` are to learn how long it takes, a device is
        waited for."""
        turns, began = _turns(living), time.perf_counter()
        with self._giving_up():
            if seconds is None:
                stack.step(turns)
            else:
                seconds.append(timed(torch.device(self._device), lambda: stack.step(turns)))
        share = (time.perf_counter() - began) / len(living)
        for member in living:
            member.attempt.clock.add(share)
            member.go_on()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Where a step of all fails, as when memory runs out, nobody knows what became of the weights: all go on by
        themselves from their checkpoints, and a mistake of their own comes again there."""
        try:
            yield
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"a stacked step failed: {summary_of(error)}") from error

    def _decide(self, stacked: float, living: Sequence[_Member]) -> None:
        each = (
            f"a step takes {1e3 * self._plain:.2f} ms, one of {len(living)} together {1e3 * stacked:.2f} ms"
        )
        if self._is_tried and stacked > WORTH * len(living) * self._plain:
            raise RefusedError(each)
        for member in living:
            with member.attempt.clock.going():  # into its own log
                log.info("trained as one batched model with %d others: %s", len(living) - 1, each)

    def _living(self) -> list[_Member]:
        return [member for member in self.members if member.turn is not None]

    @property
    def _is_tried(self) -> bool:
        """Whether nobody asked for it, so that it has to be worth it."""
        return self._requests[0].config["stack"] == "auto"


def _trainings(members: Sequence[_Member]) -> list[Training]:
    return [member.training for member in members if member.training is not None]


def _turns(members: Sequence[_Member]) -> list[Turn]:
    return [member.turn for member in members if member.turn is not None]
