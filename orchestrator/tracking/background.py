"""Who pushes, and when: a thread while a plan runs, and `sync` for what could not be sent then."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from raydistill.errors import DistillError
from raydistill.masking import MASK, mask
from raydistill.runs.run_files import GRAPH
from raydistill.runs.search_run import SEARCH
from raydistill.runs.search_view import SearchView, open_search
from raydistill.runs.view import RunView, open_run
from raydistill.tracking.children import push_stage
from raydistill.tracking.later import LOG, send_later
from raydistill.tracking.own_store import name_of, own_uri, uri_of
from raydistill.tracking.parent import (
    close_parent,
    link_cached,
    open_parent,
    push_comparison,
    push_files,
    push_table,
    signatures,
)
from raydistill.tracking.search import push_search
from raydistill.tracking.server import problem_of, version_conflict
from raydistill.tracking.session import GivenUp, Session
from raydistill.tracking.settings import read_settings
from raydistill.tracking.state import State, read_state, try_lock
from raydistill.tracking.store import (
    answers,
    import_mlflow,
    is_folder_missing,
    is_missing,
    reason,
    resolve_uri,
)
from raydistill.tracking.students import has_students_left, push_students

PERIOD = 2.0
Rest = Literal["next time", "in background"]
RAN = frozenset({"running", "done", "failed", "stopped"})
UNSENT = "tracking: `%s` gets nothing for now (%s); the next run or `distill sync` sends the rest"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MirrorResult:
    """Where a plan run is tracked, as far as that is known; `problem` says why not all of it was sent."""

    tracking_uri: str
    experiment_id: str | None = None
    run_id: str | None = None
    is_complete: bool = False
    problem: str | None = None


def mirror(folder: Path, root: Path, tracking_uri: str | None = None) -> MirrorResult:
    """Push what the run or search in `folder` left and MLflow does not know. Never raises for what the store does."""
    uri = resolve_uri(root, tracking_uri)
    with try_lock(folder) as is_mine:
        if not is_mine:
            return MirrorResult(mask(uri), problem="another process mirrors this run")
        result = _push(folder, root, uri, threading.Event())
    if result.problem is not None:
        log.warning(UNSENT, result.tracking_uri, result.problem)
    return result


class Mirror:
    """Mirrors one plan run or search every `PERIOD` seconds, on a thread, from `start` to `finish`."""

    def __init__(self, folder: Path, root: Path, tracking_uri: str | None = None) -> None:
        self.folder, self.root = folder, root
        self.uri = resolve_uri(root, tracking_uri)
        self.result = MirrorResult(mask(self.uri))
        self._stop, self._give_up, self._due = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._has_warned = self._has_pushed_rest = False
        self._is_needed = True

    def check(self) -> None:
        """Ask a server at once, on a thread, whether it takes anything from us: the first push comes only when Ray has
        started, and a wrong password should not take that long to be named."""

        def ask() -> None:
            if problem := problem_of(self.uri):
                self._warn(problem)

        threading.Thread(target=ask, name="check", daemon=True).start()

    def has_sent(self, previous: Path) -> bool:
        """Whether an earlier plan run is wholly in the store that this one goes to, as far as files tell."""
        return _has_arrived(previous, name_of(self.uri, self.root)) and not is_missing(self.uri)

    def adopt(self, previous: Path) -> None:
        """Let an earlier run, which shows the same in MLflow, stand for this one: nothing is sent, nothing imported.

        Does nothing when that run is not wholly sent, or this one has begun.
        """
        state = read_state(previous)
        if self._thread.ident is None and state is not None and self.has_sent(previous):
            state.files = signatures(self.folder)
            state.save(self.folder)
            self._is_needed = False

    def start(self) -> None:
        """Begin. MLflow is imported here: two threads that import big packages at once can meet half of one."""
        if not self._is_needed:
            return
        self._is_needed = False
        try:
            import_mlflow()
        except Exception as error:
            self._warn(reason(error))
            return
        self._thread.start()

    def hurry(self) -> None:
        """There is much to send: begin now."""
        self._due.set()

    def finish(self, seconds: float = 20.0, rest: Rest = "next time") -> MirrorResult:
        """The last push, and what earlier runs could not send as far as that is quick; at most so many seconds. What
        takes longer is sent by a process of its own that this one leaves behind, or next time."""
        self.start()
        self._stop.set()
        self._due.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._give_up.set()
                if not self.result.is_complete:
                    self._tell_of_rest(seconds, rest)
        return self.result

    def _tell_of_rest(self, seconds: float, rest: Rest) -> None:
        how = "the next run or `distill sync` sends the rest"
        if rest == "in background":
            process = send_later(self.folder, self.root, self.uri)
            how = (
                f"process {process} goes on in the background (`{self.folder / LOG}`), and `tracking: {{wait: ...}}` in"
                " the plan waits longer"
            )
        log.warning(
            "tracking: not all was sent to `%s` within %g s; %s", self.result.tracking_uri, seconds, how
        )

    def description(self) -> dict[str, Any]:
        """The entry `mlflow` of results.json."""
        state = read_state(self.folder) or State(tracking_uri=name_of(self.uri, self.root))
        return {
            "tracking_uri": mask(uri_of(state.tracking_uri, self.root)),
            "experiment_id": state.experiment_id,
            "run_id": state.run_id,
        }

    def _work(self) -> None:
        try:
            _warn_of_version(self.uri)
            self._mirror()
            if self.result.problem is None:
                self._push_rest(self._give_up, has_time=False)
        except Exception as error:  # a full disk, a folder that is gone: tracking stops nothing
            log.debug("tracking", exc_info=True)
            self._warn(reason(error))

    def _mirror(self) -> None:
        is_last = False
        while not is_last:
            with try_lock(self.folder) as is_mine:
                while is_mine and not is_last:
                    is_last = self._stop.is_set()
                    self.result = _push(self.folder, self.root, self.uri, self._give_up)
                    self._note_problem()
                    if not self._has_pushed_rest and self.result.problem is None:
                        self._has_pushed_rest = True
                        self._push_rest(self._stop, has_time=True)
                    if not self._stop.is_set():
                        self._due.wait(PERIOD)
                        self._due.clear()
            is_last = is_last or self._stop.wait(0.1)

    def _push_rest(self, give_up: threading.Event, *, has_time: bool) -> None:
        """What earlier runs could not send to this store; their models only while the plan runs anyway."""

        def ours(folder: Path) -> str | None:
            meant = mask(_uri_of(folder, self.root, None))
            return self.uri if meant == self.result.tracking_uri else None

        for name, result in _push_rest(self.root, ours, give_up, has_time=has_time):
            if result.is_complete:
                log.info("tracking: sent the earlier run %s", name)

    def _note_problem(self) -> None:
        if self.result.problem is not None and not self._give_up.is_set():
            self._warn(self.result.problem)
        elif self._has_warned:
            log.info("tracking: `%s` answers again", self.result.tracking_uri)
            self._has_warned = False

    def _warn(self, problem: str) -> None:
        has_warned, self._has_warned = self._has_warned, True  # first: the check has a thread of its own
        if not has_warned:
            log.warning(UNSENT, self.result.tracking_uri, problem)


@cache
def _warn_of_version(uri: str) -> None:
    """Once per process: a search mirrors several runs."""
    if conflict := version_conflict(uri):
        log.warning("tracking: %s", conflict)


def sync(root: Path, tracking_uri: str | None = None) -> Iterator[str]:
    """Send what a store lacks of the root's plan runs and searches; yields a line for each one sent.

    Without a URI every run goes to the store it was meant for, as far as it has not arrived there. With one all of them
    go there, those too that another store has. Raises `DistillError` at the end when something is still to be sent.
    """
    problems = []

    def meant(folder: Path) -> str:
        uri = _uri_of(folder, root, tracking_uri)
        _warn_of_version(uri)
        return uri

    for name, result in _push_rest(root, meant, threading.Event()):
        if result.is_complete:
            yield f"{name} → {result.tracking_uri}"
        else:
            hint = "; name it with its login" if MASK in result.tracking_uri and tracking_uri is None else ""
            problems.append(f"{name} could not be sent to `{result.tracking_uri}`: {result.problem}{hint}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DistillError(f"{problems[0]}{more}; `distill sync` tries again")


def _push_rest(
    root: Path, uri_of: Callable[[Path], str | None], give_up: threading.Event, *, has_time: bool = True
) -> Iterator[tuple[str, MirrorResult]]:
    """Push every plan run and search that nobody works on and that is not all sent. A store that is down is asked once.

    `uri_of` names the store for a run's folder, or None to leave it alone.
    """
    down: dict[str, str] = {}
    # By their ids, which begin with the time: the run that trained a stage comes before those that found it cached.
    found = [
        *sorted(root.glob(f"plans/*/*/{GRAPH}"), key=lambda path: (path.parent.name, path)),
        *sorted(root.glob(f"searches/*/{SEARCH}")),
    ]
    for folder in (path.parent for path in found):
        if give_up.is_set() or read_settings(folder) == "none":
            continue
        if (uri := uri_of(folder)) is None or _has_arrived(folder, name_of(uri, root)):
            continue
        name = f"{folder.parent.name}/{folder.name}"
        with try_lock(folder) as is_mine:
            if not is_mine:
                continue
            if uri in down:
                yield name, MirrorResult(mask(uri), problem=down[uri])
                continue
            result = _push(folder, root, uri, give_up, driver_is_gone=True, has_time=has_time)
        if result.problem is not None and not give_up.is_set() and not answers(uri, root):
            down[uri] = result.problem
        yield name, result


def _uri_of(folder: Path, root: Path, tracking_uri: str | None) -> str:
    """The store that a run was meant for; ours if that is the same but for the login, which is not stored."""
    ours = resolve_uri(root, tracking_uri)
    state = read_state(folder)
    if tracking_uri is not None or state is None or state.tracking_uri == name_of(ours, root):
        return ours
    meant = uri_of(state.tracking_uri, root)
    # A database whose folder is gone was that of this root, which is somewhere else now.
    return own_uri(root) if is_folder_missing(meant) else meant


def _has_arrived(folder: Path, store: str) -> bool:
    """Whether all of it was sent to the store of this name, and no file that is shown has changed since."""
    state = read_state(folder)
    return state is not None and state.tracking_uri == store and _is_all_sent(folder, state)


def _is_all_sent(folder: Path, state: State) -> bool:
    return state.is_finished and signatures(folder).items() <= state.files.items()


def push_rest_of(folder: Path, root: Path, uri: str, give_up: threading.Event) -> MirrorResult:
    """Push what is left of a run whose command has ended. Whoever calls this holds the run's lock."""
    return _push(folder, root, uri, give_up, driver_is_gone=True)


def _push(
    folder: Path,
    root: Path,
    uri: str,
    give_up: threading.Event,
    *,
    driver_is_gone: bool = False,
    has_time: bool = True,
) -> MirrorResult:
    """One push under the lock. Whatever goes wrong becomes the result's `problem`: tracking stops nothing."""
    state = read_state(folder)
    is_new = state is None or state.tracking_uri != name_of(uri, root)
    if state is None or is_new:
        state = State(tracking_uri=name_of(uri, root))
    problem = None
    try:
        if is_new:
            state.save(folder)  # first of all, so that `sync` knows which store the run was meant for
        is_search = (folder / SEARCH).exists()
        run = open_search(folder, root) if is_search else open_run(folder, root)
        is_over = driver_is_gone or run.status != "running"
        if not (is_over and _is_all_sent(folder, state)):
            _push_all(
                Session(run, _tags_of(run), state, root, uri, give_up, is_over=is_over, has_time=has_time)
            )
    except Exception as error:
        log.debug("tracking", exc_info=True)
        problem = error.message if isinstance(error, DistillError) else problem_of(uri) or reason(error)
    return MirrorResult(mask(uri), state.experiment_id, state.run_id, state.is_finished, problem)


def _tags_of(run: RunView | SearchView) -> dict[str, str]:
    """What its run in MLflow and all below it are tagged with."""
    if isinstance(run, SearchView):
        return {
            "plan": run.plan,
            "search": run.about.fingerprint,
            "mlflow.source.name": "distill tune",
        }
    return {"plan": run.plan, "plan_run": run.run_id}


def _push_all(session: Session[RunView | SearchView]) -> None:
    """Push a run or a search. One that was deleted in MLflow stays deleted; in an emptied store it is made anew."""
    is_known = session.state.run_id is not None
    try:
        _push_parts(session)
    except Exception as error:
        if not is_known or isinstance(error, GivenUp):
            raise
        if session.is_forgotten():
            session.state.forget()
            _push_parts(session)
        elif not session.is_deleted(str(session.state.run_id)):
            raise
        else:
            session.state.files = signatures(session.run.folder)
            session.state.is_finished = session.is_over
            session.save()


def _push_parts(session: Session[RunView | SearchView]) -> None:
    if isinstance(session.run, SearchView):
        push_search(cast(Session[SearchView], session))
        session.state.is_finished = session.is_over
    else:
        plan_session = cast(Session[RunView], session)
        _push_plan_run(plan_session)
        session.state.is_finished = session.is_over and not has_students_left(plan_session)
    session.save()


def _push_plan_run(session: Session[RunView]) -> None:
    open_parent(session)
    # First what was there before: others that were made from it lead to it.
    for node in link_cached(session):
        push_stage(session, replace(node, entry=node.entry.model_copy(update={"status": "done"})))
    for node in session.run.stages.values():
        if node.status in RAN:
            push_stage(session, node)
    push_comparison(session)
    push_table(session)
    push_files(session)
    if session.is_over:
        close_parent(session)
        if session.has_time:
            push_students(session)
