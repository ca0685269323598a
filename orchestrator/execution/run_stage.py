"""One attempt at a stage, in whatever process it was sent to: set up, call the stage, write the record."""

import logging
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from raydistill.errors import DistillError, StageError, StageStopped
from raydistill.execution.deadline import Deadline
from raydistill.execution.request import Outcome, StageRequest
from raydistill.execution.user_code import checked_code, checked_metrics
from raydistill.kinds.survey import SURVEYS
from raydistill.lookup import load_object
from raydistill.plan.schema import build_task
from raydistill.plan.stage import StageConfig, stage_of
from raydistill.runs.context import StageContext, never
from raydistill.runs.folder import LOG, StageFolder
from raydistill.runs.mirror import open_storage
from raydistill.runs.placement import nodes_of, read_places, remove_places, write_place
from raydistill.runs.plan_run import finished_record
from raydistill.runs.record import Record, summary_of

log = logging.getLogger(__name__)


def run_stage(
    request: StageRequest,
    *,
    should_stop: Callable[[], bool] = never,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    node_id: str = "",
) -> Outcome:
    """Run a stage on this process. Its own errors end in the record, not in an exception.

    With `world` > 1 every worker of a `torch.distributed` group calls this. An error of the stage is then written by
    whichever worker meets it first. `node_id`: what Ray calls this machine.
    """
    attempt = Attempt(request, should_stop, on_report, rank=rank, world=world, device=device)
    with attempt.opened():
        attempt.do(lambda: attempt.begin(node_id))
        attempt.do(lambda: attempt.finish(_call_in_time(request, attempt)))
        attempt.do_afterwards()
    assert attempt.outcome is not None
    return attempt.outcome


class Attempt:
    """One attempt at one stage in this process, which may take turns with others: its context, its log, its time, and
    its `outcome` once it has ended."""

    def __init__(
        self,
        request: StageRequest,
        should_stop: Callable[[], bool] = never,
        on_report: Callable[[Mapping[str, float]], None] | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        device: str = "cpu",
    ) -> None:
        self.request = request
        self.clock = OwnTime()
        self.deadline = deadline = Deadline(request, rank)
        self.outcome: Outcome | None = None
        root = open_storage(request.root)
        self.context = StageContext(
            name=request.name,
            folder=StageFolder(root / request.folder),
            root=root,
            reads=request.reads,
            peers=request.peers,
            attempt=request.attempt,
            rank=rank,
            world=world,
            device=device,
            should_stop=lambda: should_stop() or deadline.has_passed(),
            task_identity=request.task_identity,
            test=request.test,
            sees_test=request.sees_test,
            on_report=on_report,
            clock=self.clock,
        )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, this attempt may write the stage's folder, and what is logged in its time is in the stage's log."""
        folder, is_main = self.context.folder, self.context.is_main
        with (
            folder.worked_on(self.request.identity, is_main=is_main),
            _logging_to(folder.path / LOG, enabled=is_main, during=self.clock),
        ):
            yield

    def begin(self, node_id: str) -> None:
        """What comes before anything is computed."""
        context = self.context
        context.is_continued = context.folder.is_begun()
        write_place(context.folder.path, self.request.attempt, context.rank, node_id)
        _set_threads(self.request)
        how = f"attempt {self.request.attempt}, rank {context.rank} of {context.world}, {context.device}"
        log.info("started (%s)", how)
        if self.request.alone:
            log.info("replicas are not stacked: %s", self.request.alone)

    def do(self, work: Callable[[], None], passing: tuple[type[Exception], ...] = ()) -> None:
        """Do some of the stage's work, if it has not ended. An error of it ends the stage and goes no further, but for
        those of the types `passing`, which are not the stage's."""
        if self.outcome is not None:
            return
        with self.clock.going():
            try:
                work()
            except passing:
                raise
            except StageStopped as error:
                log.info("stopped: %s", error.message)
                self.outcome = Outcome("stopped", self.clock(), error.message)
            except Exception as error:
                log.info("failed: %s", traceback.format_exc())  # to log.txt; the terminal shows one line
                self.outcome = _fail(self.request, self.context, error, self.clock())
            except BaseException:
                self._forget_places()
                raise
            if self.outcome is not None:
                self._forget_places()

    def finish(self, metrics: dict[str, float]) -> None:
        """The stage's work is done: its record is written."""
        if self.context.is_main:
            _finish(self.request, self.context, metrics, self.clock())
        self.outcome = Outcome("done", self.clock(), warnings=tuple(self.context.warnings))

    def leave(self, reason: str) -> None:
        """End without a result: another attempt, by itself, goes on from the last checkpoint; later, where this one was
        asked to stop."""
        with self.clock.going():
            log.info("leaves the stack: %s", reason)
            self._forget_places()
        self.outcome = Outcome("stopped" if self.context.should_stop() else "apart", self.clock(), reason)

    def do_afterwards(self) -> None:
        """What is to be done in this process once there is a result."""
        if (
            self.context.is_main
            and self.request.afterwards
            and self.outcome
            and self.outcome.status == "done"
        ):
            with self.clock.going():
                _do_afterwards(*self.request.afterwards)

    def _forget_places(self) -> None:
        """Unless another attempt has begun, whose places these are."""
        if self.context.is_main:
            with suppress(DistillError, OSError):
                self.context.check_current()
                remove_places(self.context.folder.path)


class OwnTime:
    """The seconds of one of several things that take turns; calling it tells how many. They run from the beginning,
    until `pause`."""

    def __init__(self) -> None:
        self._spent, self._since = 0.0, time.perf_counter()
        self.is_going = True

    def __call__(self) -> float:
        return self._spent + (time.perf_counter() - self._since if self.is_going else 0.0)

    def add(self, seconds: float) -> None:
        """Its share of what was done for several at once."""
        self._spent += seconds

    def pause(self) -> None:
        """It is another's turn."""
        self._spent, self.is_going = self(), False

    @contextmanager
    def going(self) -> Iterator[None]:
        """Inside, it is its turn."""
        if self.is_going:
            yield
            return
        self._since, self.is_going = time.perf_counter(), True
        try:
            yield
        finally:
            self.pause()


def _call_in_time(request: StageRequest, attempt: Attempt) -> dict[str, float]:
    with attempt.deadline:
        return _call(request, attempt.context)


def _do_afterwards(address: str, *arguments: str) -> None:
    """The stage is a result already: what fails here is no fault of it."""
    try:
        load_object(address)(*arguments)
    except Exception:
        log.info("`%s` failed: %s", address, traceback.format_exc())


def _call(request: StageRequest, context: StageContext) -> dict[str, float]:
    config = prepare_context(request, context)
    if finished_record(context.folder.path) is not None:  # it lacks a judgement on this test split
        from raydistill.stages.judge_again import has_judged_model, judge_again

        if has_judged_model(context.folder):
            return judge_again(config, context)
    stage = load_object(config.implementation)
    metrics: dict[str, float] = stage(config, context)
    return metrics


def prepare_context(request: StageRequest, context: StageContext) -> StageConfig:
    """Tell the context what the request says in plain values; the stage's config."""
    context.task = build_task(request.task)
    config = stage_of(request.config, *SURVEYS)
    context.models = checked_code(config, request.identity, context.task)
    context.own_metrics = checked_metrics(request.metrics)
    if config.has_teacher:
        from raydistill.stages.teacher_answers import teacher_answers

        context.teacher_predicted = teacher_answers(config, context)
    return config


def _finish(request: StageRequest, context: StageContext, metrics: dict[str, float], seconds: float) -> None:
    context.flush()
    context.check_current()
    trained = finished_record(context.folder.path)  # by a trial that did not see the test split
    record = Record(
        kind=request.kind,
        fingerprint=request.fingerprint,
        status="done",
        untested=context.is_untested,
        judged_on=request.test if context.is_judged else None,
        judged_by=context.own_metrics,
        seconds=seconds + (trained.seconds if trained else 0.0),
        finished=time.time(),
        metrics={name: float(value) for name, value in metrics.items()},
        parameters=context.parameters,
        costs=trained.costs if trained else context.costs,
        warnings=tuple(dict.fromkeys((*(trained.warnings if trained else ()), *context.warnings))),
        payload=context.folder.checksums(context.payload),
        versions=versions(),
        git_commit=git_commit(),
        workers=trained.workers if trained else context.world,
        stacked=trained.stacked if trained else context.stacked,
        nodes=_nodes(request, context),
        attempts=request.number,
        reserved=trained.reserved if trained else _reserved(request, context),
        continued=trained.continued if trained else context.is_continued,
    )
    context.folder.write_record(record)
    for tidy_up in context.when_done:
        tidy_up()
    log.info("done in %.1f s", seconds)


def _nodes(request: StageRequest, context: StageContext) -> tuple[str, ...]:
    return nodes_of(read_places(context.folder.path, request.attempt, context.world))


def _reserved(request: StageRequest, context: StageContext) -> dict[str, float]:
    """What the workers of an attempt hold together; of workers that come and go, those that came."""
    workers = context.world
    if request.workers_come_and_go and workers > 1:
        workers = max(1, len(read_places(context.folder.path, request.attempt, context.world)))
    gpus = 1.0 if request.shape.given_gpus is None else request.shape.given_gpus
    return {
        "cpus": round(request.shape.cpus * workers, 4),
        "gpus": 0.0 if context.device == "cpu" else round(gpus * workers, 4),
    }


def _fail(request: StageRequest, context: StageContext, error: Exception, seconds: float) -> Outcome:
    summary = summary_of(error)
    record = Record(
        kind=request.kind,
        fingerprint=request.fingerprint,
        status="failed",
        seconds=seconds,
        finished=time.time(),
        versions=versions(),
        git_commit=git_commit(),
        workers=context.world,
        nodes=_nodes(request, context),
        attempts=request.number,
        reserved=_reserved(request, context),
        continued=context.is_continued,
        warnings=tuple(context.warnings),
        error=summary,
        traceback=traceback.format_exc(),
    )
    try:
        context.check_current()
        context.folder.write_failure(record)
    except StageError:
        log.warning("this attempt was superseded; its failure is not recorded")
    except Exception as second:  # a full disk must not hide the first error
        log.error("the record cannot be written: %s", second)
    return Outcome("failed", seconds, summary)


def _set_threads(request: StageRequest) -> None:
    """As many threads as CPUs were asked for, here as on a cluster: sums round the same way everywhere."""
    import torch

    threads = max(1, int(request.shape.cpus))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class _LogFile(logging.FileHandler):
    """Says nothing when the disk is full: the stage's own files will."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or drop it."""
        with suppress(OSError):
            if self.stream is None:
                self.stream = self._open()
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()


@contextmanager
def _logging_to(path: Path, *, enabled: bool, during: OwnTime) -> Iterator[None]:
    if not enabled:
        yield
        return
    logger = logging.getLogger("raydistill")
    handler = _LogFile(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(lambda record: during.is_going)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "ray")
    }


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the working directory, if it is a git checkout."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
