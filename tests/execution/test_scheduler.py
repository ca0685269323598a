"""What runs, in which order and how often: with stages that leave a line per call, and a back end that is told."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raydistill.errors import PlanError, StoreError
from raydistill.execution import scheduler
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.request import Backend, Outcome, StageRequest
from raydistill.execution.run_stage import run_stage
from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import Graph, Node
from raydistill.runs import lease
from raydistill.runs.context import claim_attempt
from raydistill.runs.folder import StageFolder
from raydistill.runs.lease import Leases
from raydistill.runs.placement import STARTING, Placement, here
from raydistill.runs.plan_run import NodeState
from raydistill.runs.record import Record

HERE = Path(__file__).parent
PATIENCE = 60.0
CHAIN: dict[str, dict[str, Any]] = {"teacher": {}, "student": {"reads": ["teacher"]}}
PEERS: dict[str, dict[str, Any]] = {name: {} for name in ("first", "second", "third")}


class Slots:
    """A back end with so many CPUs. The stage that started first ends first, as `script` says, else well."""

    def __init__(self, cpus: float = 1, script: Mapping[str, Sequence[Outcome]] | None = None) -> None:
        self.cpus = cpus
        self.script = {name: list(outcomes) for name, outcomes in (script or {}).items()}
        self.running: dict[str, StageRequest] = {}
        self.started: list[str] = []
        self.attempts: list[str] = []
        self.asked: list[str] = []
        self.wanted: list[list[str]] = []
        self.side_by_side: list[set[str]] = []
        self.infeasible: str | None = None

    def check_feasible(self, nodes: Sequence[Node]) -> None:
        if self.infeasible in [node.name for node in nodes]:
            raise PlanError(f"`{self.infeasible}` never fits")

    def want(self, waiting: Iterable[Node]) -> None:
        self.wanted.append([node.name for node in waiting])

    def placements(self) -> dict[str, Any]:
        return {}

    def try_start(self, request: StageRequest) -> bool:
        self.asked.append(request.name)
        used = sum(other.shape.cpus for other in self.running.values())
        if used + request.shape.cpus > self.cpus:
            return False
        self.running[request.name] = request
        self.started.append(request.name)
        self.attempts.append(request.attempt)
        self.side_by_side.append(set(self.running))
        return True

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        if not self.running:
            assert seconds > 0, "the scheduler spins"
            time.sleep(min(seconds, 0.01))
            return []
        name, request = next(iter(self.running.items()))
        del self.running[name]
        scripted = self.script.get(name)
        return [(name, scripted.pop(0) if scripted else self.work(request))]

    def work(self, request: StageRequest) -> Outcome:
        return run_stage(request)

    def stop(self) -> list[tuple[str, Outcome]]:
        names, self.running = list(self.running), {}
        return [(name, Outcome("stopped")) for name in names]

    def close(self) -> None:
        pass


class Refusing(Slots):
    """A back end that must not be asked."""

    def placements(self) -> dict[str, Any]:
        return {}

    def try_start(self, request: StageRequest) -> bool:
        raise AssertionError(f"`{request.name}` was started")


class Bench:
    """One storage root, on which graphs are run."""

    def __init__(self, root: Path, counting: ModuleType) -> None:
        self.root, self.counting = root, counting
        root.mkdir()

    def graph(self, stages: Mapping[str, Mapping[str, Any]]) -> Graph:
        return self.counting.graph_of(stages)[1]

    def run(
        self, stages: Mapping[str, Mapping[str, Any]], backend: Backend | None = None, **options: Any
    ) -> dict[str, NodeState]:
        plan, graph = self.counting.graph_of(stages)
        backend = backend or LocalBackend(options.get("stop"))
        return run_stages(graph, backend, task=plan.task, root=self.root, **options)

    def statuses(
        self, stages: Mapping[str, Mapping[str, Any]], backend: Backend | None = None, **options: Any
    ) -> dict[str, str]:
        return {name: state.status for name, state in self.run(stages, backend, **options).items()}

    def folder(self, stages: Mapping[str, Mapping[str, Any]], name: str) -> StageFolder:
        return StageFolder(self.root / self.graph(stages).nodes[name].folder)

    def record(self, stages: Mapping[str, Mapping[str, Any]], name: str) -> Record:
        record = self.folder(stages, name).record()
        assert record is not None
        return record

    def tell(self, name: str, word: str) -> Path:
        path = self.root / f"{name}.{word}"
        path.touch()
        return path

    @property
    def calls(self) -> list[str]:
        return self.counting.calls(self.root)

    def driver(
        self, stages: Mapping[str, Mapping[str, Any]], patience: float = 20.0
    ) -> subprocess.Popen[str]:
        """Another driver over the same root, in a process of its own."""
        command = [sys.executable, str(HERE / "counting_driver.py"), str(self.root)]
        return subprocess.Popen(
            [*command, json.dumps(stages), str(patience)], stdout=subprocess.PIPE, text=True
        )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(HERE)
    counting = importlib.import_module("counting_stages")
    for owner, name, value in counting.replacements():
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(scheduler, "RECHECK_SECONDS", 0.05)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    return Bench(tmp_path / "runs", counting)


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Whatever happens, the process does not outlive the test."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_failed_stage_skips_only_what_reads_it(bench: Bench) -> None:
    stages = CHAIN | {
        "pupil": {"reads": ["student"]},
        "other": {},
        "friend": {"reads": ["other"]},
        "both": {"reads": ["student", "other"]},
    }
    bench.tell("teacher", "fails")
    states = bench.run(stages)
    assert {name: state.status for name, state in states.items()} == {
        "teacher": "failed",
        "student": "skipped",
        "pupil": "skipped",
        "both": "skipped",
        "other": "done",
        "friend": "done",
    }
    record = bench.record(stages, "teacher")
    assert record.status == "failed"
    assert record.error == states["teacher"].error == "teacher has a fault [/of] its own"
    assert "Traceback" in str(record.traceback)
    assert "`teacher`, which failed" in states["student"].note
    assert "`student`, which was skipped" in states["pupil"].note


def test_running_again_starts_nothing(bench: Bench) -> None:
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "done"}
    assert bench.statuses(CHAIN, Refusing()) == {"teacher": "cached", "student": "cached"}
    assert bench.calls == ["teacher", "student"]


def test_a_failed_record_runs_again(bench: Bench) -> None:
    fault = bench.tell("teacher", "fails")
    bench.run(CHAIN)
    fault.unlink()
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "done"}
    assert bench.calls == ["teacher", "teacher", "student"]


def test_ready_stages_start_side_by_side_when_there_is_room(bench: Bench) -> None:
    backend = Slots(cpus=2)
    bench.run({"a": {}, "b": {}, "c": {}, "last": {"reads": ["a", "b", "c"]}}, backend)
    assert backend.side_by_side == [{"a"}, {"a", "b"}, {"b", "c"}, {"last"}]


def test_machines_that_are_taken_away_with_notice_use_up_no_retries(bench: Bench) -> None:
    taken = Outcome("lost", error="its node is about to go", preempted=True)
    backend = Slots(script={"teacher": [taken] * 9})
    stages = {"teacher": {"resources": {"retries": 1}}}
    assert bench.statuses(stages, backend) == {"teacher": "done"}
    assert len(backend.attempts) == 10
    died = Slots(script={"teacher": [taken, Outcome("lost"), taken, Outcome("lost"), taken]})
    again = Bench(bench.root.with_name("again"), bench.counting)
    assert again.statuses(stages, died) == {"teacher": "failed"}
    assert len(died.attempts) == 4


def test_the_back_end_hears_what_waits_for_room_alone_and_when_nothing_does_any_more(bench: Bench) -> None:
    backend = Slots(cpus=1)
    bench.run({"a": {}, "b": {}, "c": {}, "last": {"reads": ["a", "b", "c"]}}, backend)
    told = [names for index, names in enumerate(backend.wanted) if names != backend.wanted[index - 1]]
    assert [sorted(names) for names in told] == [["b", "c"], ["c"], []]
    enough = Slots(cpus=3)
    bench.run({"d": {}, "e": {}}, enough)
    assert enough.wanted == []


def test_the_longest_chain_starts_first(bench: Bench) -> None:
    backend = Slots()
    stages: dict[str, dict[str, Any]] = {
        "short": {"epochs": 5},
        "long": {"epochs": 2},
        "after": {"reads": ["long"], "epochs": 4},
    }
    bench.run(stages, backend)
    assert backend.started == ["long", "short", "after"]


def test_a_stage_without_room_lets_a_smaller_one_pass(bench: Bench) -> None:
    backend = Slots(cpus=3)
    large = {"epochs": 9, "resources": {"cpus": 2}}
    bench.run({"first": large, "second": large, "small": {}}, backend)
    assert backend.started == ["first", "small", "second"]


def test_stages_of_one_shape_are_not_asked_one_by_one_for_room(bench: Bench) -> None:
    backend = Slots()
    stages: dict[str, dict[str, Any]] = {f"stage{number}": {} for number in range(20)}
    bench.run(stages, backend)
    assert len(backend.started) == 20
    assert len(backend.asked) <= 2 * 20


def test_a_lost_stage_is_tried_again_under_a_new_attempt(bench: Bench) -> None:
    backend = Slots(script={"teacher": [Outcome("lost"), Outcome("lost")]})
    assert bench.statuses(CHAIN, backend) == {"teacher": "done", "student": "done"}
    assert backend.started == ["teacher", "teacher", "teacher", "student"]
    assert len(set(backend.attempts)) == 4


def test_a_stage_that_is_lost_four_times_has_failed(bench: Bench) -> None:
    backend = Slots(script={"teacher": [Outcome("lost", error="killed by signal 9")] * 9})
    assert bench.statuses(CHAIN, backend) == {"teacher": "failed", "student": "skipped"}
    assert backend.started == ["teacher"] * 4
    record = bench.record(CHAIN, "teacher")
    assert record.status == "failed"
    assert record.error == "its process died 4 times: killed by signal 9"


@pytest.mark.parametrize(
    ("retries", "told"), [(0, "its process died: gone"), (1, "its process died 2 times: gone")]
)
def test_a_stage_says_how_often_it_is_tried_again(bench: Bench, retries: int, told: str) -> None:
    stages: dict[str, dict[str, Any]] = {"teacher": {"resources": {"retries": retries}}, "other": {}}
    lost = [Outcome("lost", error="gone")] * 9
    backend = Slots(script={"teacher": lost, "other": lost[:3]})
    assert bench.statuses(stages, backend) == {"teacher": "failed", "other": "done"}
    assert backend.started.count("teacher") == retries + 1
    assert bench.record(stages, "teacher").error == told


def test_a_forced_stage_runs_again_from_the_start_and_its_readers_do_not(bench: Bench) -> None:
    bench.run(CHAIN)
    leftover = bench.folder(CHAIN, "teacher").path / "progress.txt"
    leftover.write_text("half of it")
    statuses = bench.statuses(CHAIN, forced=frozenset({"teacher"}))
    assert statuses == {"teacher": "done", "student": "cached"}
    assert bench.calls == ["teacher", "student", "teacher"]
    assert bench.record(CHAIN, "teacher").metrics["continued"] == 0.0


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_input_is_named_and_made_again_before_its_reader_starts(
    bench: Bench, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    bench.run({"teacher": {}})
    path = bench.folder(CHAIN, "teacher").path / "output.txt"
    good = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(good[:3] if harm == "truncate" else bytes([good[0] ^ 1]) + good[1:])
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "done"}
    assert str(path) in caplog.text
    assert bench.calls == ["teacher", "teacher", "student"]
    assert path.read_bytes() == good


def flip_unnoticed(path: Path) -> None:
    """Change a byte as a bad disk does: size and time stay."""
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_damaged_stage_that_nobody_reads_is_made_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.run(CHAIN)
    path = bench.folder(CHAIN, "student").path / "output.txt"
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert bench.statuses(CHAIN) == {"teacher": "cached", "student": "done"}
    assert f"`{path}` is damaged" in caplog.text
    assert path.read_bytes() == good
    assert bench.statuses(CHAIN) == {"teacher": "cached", "student": "cached"}


def test_an_input_is_compared_even_when_size_and_time_are_the_old_ones(bench: Bench) -> None:
    bench.run({"teacher": {}})
    flip_unnoticed(bench.folder(CHAIN, "teacher").path / "output.txt")
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "done"}
    assert bench.calls == ["teacher", "teacher", "student"]


def test_a_damaged_input_that_no_longer_fits_the_machines_has_failed(bench: Bench) -> None:
    bench.run({"teacher": {}})
    flip_unnoticed(bench.folder(CHAIN, "teacher").path / "output.txt")
    backend = Slots()
    backend.infeasible = "teacher"
    assert bench.statuses(CHAIN, backend) == {"teacher": "failed", "student": "skipped"}


def test_a_damaged_record_is_named_and_its_stage_runs_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.run(CHAIN)
    path = bench.folder(CHAIN, "teacher").path / "record.json"
    path.write_bytes(path.read_bytes()[:40])
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "cached"}
    assert f"`{path}` is damaged" in caplog.text


def test_the_record_of_another_stage_is_no_result(bench: Bench) -> None:
    bench.run(CHAIN)
    foreign = bench.folder(CHAIN, "student").path / "record.json"
    path = bench.folder(CHAIN, "teacher").path / "record.json"
    path.write_bytes(foreign.read_bytes())
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "cached"}
    assert bench.record(CHAIN, "teacher").kind == "train"


def test_the_folder_of_another_stage_is_left_alone_and_its_stage_fails(bench: Bench) -> None:
    folder = bench.folder(CHAIN, "teacher")
    folder.create({"kind": "something else"})
    (folder.path / "precious").touch()
    states = bench.run(CHAIN | {"other": {}}, forced=frozenset({"teacher"}))
    assert [state.status for state in states.values()] == ["failed", "skipped", "done"]
    assert str(folder.path) in str(states["teacher"].error)
    assert (folder.path / "precious").exists()


def test_equal_stages_of_a_plan_run_once(bench: Bench) -> None:
    twins = {"first": {"seed": 3}, "second": {"seed": 3}}
    assert sorted(bench.statuses(twins, Slots(cpus=2)).values()) == ["cached", "done"]
    again = bench.statuses(twins, Slots(cpus=2), forced=frozenset(twins))
    assert sorted(again.values()) == ["cached", "done"]
    assert len(bench.calls) == 2


def test_a_stopped_run_is_continued_by_the_next_one(bench: Bench) -> None:
    brake, stop = bench.tell("teacher", "waits"), threading.Event()

    def stop_when_it_runs(name: str, state: NodeState) -> None:
        if state.status == "running":
            stop.set()

    class Interrupted(Slots):
        def work(self, request: StageRequest) -> Outcome:
            return run_stage(request, should_stop=stop.is_set)

    stages = CHAIN | {"other": {"epochs": 1, "resources": {"cpus": 2}}}
    statuses = bench.statuses(stages, Interrupted(), stop=stop, watch=stop_when_it_runs)
    assert set(statuses.values()) == {"stopped"}
    brake.unlink()
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "done"}


def test_the_local_back_end_stops_its_stage_and_continues_it(bench: Bench) -> None:
    brake, stop = bench.tell("teacher", "waits"), threading.Event()
    running = threading.Thread(target=lambda: wait_until(lambda: bench.calls) or stop.set())
    running.start()
    assert bench.statuses(CHAIN, stop=stop) == {"teacher": "stopped", "student": "stopped"}
    running.join()
    brake.unlink()
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "done"}
    assert bench.record(CHAIN, "teacher").metrics["continued"] == 1.0


def test_a_run_that_is_stopped_before_it_begins_starts_nothing(bench: Bench) -> None:
    stop = threading.Event()
    stop.set()
    assert bench.statuses(CHAIN, Refusing(), stop=stop) == {"teacher": "stopped", "student": "stopped"}


def test_what_never_fits_ends_the_run_before_anything_starts(bench: Bench) -> None:
    backend = Refusing()
    backend.infeasible = "student"
    with pytest.raises(PlanError, match="never fits"):
        bench.run(CHAIN, backend)


def test_a_full_disk_fails_the_stage_and_leaves_no_record(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        states = bench.run(CHAIN)
    assert [state.status for state in states.values()] == ["failed", "skipped"]
    assert "No space left on device" in str(states["teacher"].error)
    assert "\n" not in str(states["teacher"].error)
    assert bench.folder(CHAIN, "teacher").record() is None
    assert bench.statuses(CHAIN) == {"teacher": "done", "student": "done"}


def test_a_folder_that_cannot_be_made_fails_its_stage(bench: Bench) -> None:
    folder = bench.folder(CHAIN, "teacher").path
    folder.parent.mkdir()
    folder.write_text("a file is in the way")
    states = bench.run(CHAIN | {"other": {}})
    assert [state.status for state in states.values()] == ["failed", "skipped", "done"]
    assert str(folder) in str(states["teacher"].error)


def test_two_drivers_of_one_process_run_each_stage_once(bench: Bench) -> None:
    stages: dict[str, dict[str, Any]] = {f"stage{number}": {} for number in range(6)}
    stages["last"] = {"reads": list(stages)}
    ends: list[dict[str, str]] = []
    drivers = [threading.Thread(target=lambda: ends.append(bench.statuses(stages))) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(PATIENCE)
    assert sorted(bench.calls) == sorted(stages)
    for name in stages:
        assert sorted(end[name] for end in ends) == ["cached", "done"]


def test_two_drivers_of_two_processes_run_each_stage_once(bench: Bench) -> None:
    stages: dict[str, dict[str, Any]] = {f"stage{number}": {} for number in range(6)}
    stages["last"] = {"reads": list(stages)}
    brake = bench.tell("stage0", "waits")
    with ended(bench.driver(stages)) as first, ended(bench.driver(stages)) as second:
        wait_until(lambda: len(bench.calls) >= 6)
        brake.unlink()
        ends = [json.loads(driver.communicate(timeout=PATIENCE)[0]) for driver in (first, second)]
    assert sorted(bench.calls) == sorted(stages)
    for name in stages:
        assert sorted(end[name] for end in ends) == ["cached", "done"]


def test_a_second_driver_takes_over_from_one_that_was_killed(bench: Bench) -> None:
    brake = bench.tell("student", "waits")
    with ended(bench.driver(CHAIN)) as first:
        wait_until(lambda: "student" in bench.calls)
        first.kill()
        first.wait()
        brake.unlink()
        assert bench.statuses(CHAIN) == {"teacher": "cached", "student": "done"}


def test_a_driver_that_slept_too_long_loses_its_stage_and_publishes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE", 0.5)
    brake = bench.tell("teacher", "waits")
    with ended(bench.driver(CHAIN)) as sleeper:
        wait_until(lambda: bench.calls)
        os.kill(sleeper.pid, signal.SIGSTOP)
        brake.unlink()
        assert bench.statuses(CHAIN) == {"teacher": "done", "student": "done"}
        published = (bench.folder(CHAIN, "teacher").path / "record.json").read_bytes()
        os.kill(sleeper.pid, signal.SIGCONT)
        assert json.loads(sleeper.communicate(timeout=PATIENCE)[0]) == {
            "teacher": "cached",
            "student": "cached",
        }
    assert (bench.folder(CHAIN, "teacher").path / "record.json").read_bytes() == published
    assert bench.calls == ["teacher", "teacher", "student"]


def test_a_stage_whose_lease_was_lost_counts_only_when_the_new_owner_has_published(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench.folder(CHAIN, "teacher")
    other = Leases()

    class Robbed(Slots):
        def work(self, request: StageRequest) -> Outcome:
            if self.started.count(request.name) == 1 and request.name == "teacher":
                with monkeypatch.context() as patch:
                    patch.setattr(lease, "PATIENCE", -1.0)
                    other.acquire(folder.path)
                    assert other.acquire(folder.path)
                claim_attempt(folder, "other")
                assert run_stage(request).status == "failed"
                other.release(folder.path)
                return Outcome("done")
            return run_stage(request)

    backend = Robbed()
    assert bench.statuses(CHAIN, backend) == {"teacher": "done", "student": "done"}
    other.close()
    assert backend.started == ["teacher", "teacher", "student"]


def test_nobody_keeps_a_lease_when_the_back_end_breaks(bench: Bench) -> None:
    class Broken(Slots):
        def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
            raise StoreError("broken")

    with pytest.raises(StoreError, match="broken"):
        bench.run(CHAIN, Broken())
    leases = Leases()
    assert leases.acquire(bench.folder(CHAIN, "teacher").path)
    leases.close()


def test_the_watcher_hears_every_change_of_every_node(bench: Bench) -> None:
    heard: list[tuple[str, str]] = []
    bench.run(CHAIN, watch=lambda name, state: heard.append((name, state.phase)))
    assert heard == [(name, phase) for name in CHAIN for phase in ("starting", "running", "done")]


class Nodes(Slots):
    """Processes begin when the driver looks for the second time; the first attempt's node is lost before it is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.looks = 0

    def placements(self) -> dict[str, Placement]:
        self.looks += 1
        phases = [STARTING, Placement("running", ("one",)), Placement("node lost", ("one",))]
        if len(self.attempts) > 1:
            phases = [Placement("running", ("two",))]
        return {name: phases[min(self.looks, len(phases)) - 1] for name in self.running}

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        return super().wait(seconds) if self.looks >= 3 or not self.running else []


def test_what_running_and_waiting_stand_for_is_told_with_node_and_attempt(bench: Bench) -> None:
    heard: list[tuple[str, str, tuple[str, ...]]] = []
    states = bench.run(
        CHAIN,
        Nodes(script={"teacher": [Outcome("lost", error="its node died")]}),
        watch=lambda name, state: heard.append((name, state.phase, state.placement.nodes)),
    )
    assert [phase for name, phase, _ in heard if name == "teacher"] == [
        "starting",
        "running",
        "node lost",
        "waiting, attempt 2",
        "starting, attempt 2",
        "running, attempt 2",
        "done",
    ]
    assert states["teacher"].placement.nodes == ("two",)
    record = bench.record(CHAIN, "teacher")
    assert (record.attempts, record.workers, record.nodes) == (2, 1, (here(),))
    assert not list(bench.folder(CHAIN, "teacher").path.glob("place-*"))


def test_stages_that_wait_for_room_say_so_once(bench: Bench) -> None:
    heard: list[tuple[str, str]] = []
    bench.run(PEERS, Slots(cpus=1), watch=lambda name, state: heard.append((name, state.phase)))
    waited = [name for name, phase in heard if phase == "waiting for room"]
    assert sorted(waited) == sorted(PEERS)[1:]


def test_an_error_calls_stages_as_the_plan_does(bench: Bench) -> None:
    teacher, student = (bench.graph(CHAIN).nodes[name].fingerprint for name in CHAIN)
    told = f"`{teacher}` of `{student}` is damaged, `other` is not"
    backend = Slots(script={"student": [Outcome("failed", error=told)]})
    states = bench.run(CHAIN, backend)
    assert states["student"].error == "`teacher` of `student` is damaged, `other` is not"
