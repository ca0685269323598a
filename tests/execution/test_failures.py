"""What breaks while stages run: hangs, full disks, memory, clocks, whole machines, and the head of the Ray cluster.

Other files kill what this one does not: `test_ray_backend` a worker of a stage and of a group,
`test_codistill_on_ray` a peer, `test_kill_local` and `test_scheduler` the driver.
"""

import importlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray._private.utils import get_system_memory, get_used_memory
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from raydistill.errors import ClusterLost, PlanError, StageError
from raydistill.execution import deadline
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.ray_backend import RayBackend, cluster_health
from raydistill.execution.ray_backend import backend as backend_module
from raydistill.execution.ray_backend.failures import describe_loss
from raydistill.execution.ray_backend.resources import GIB
from raydistill.execution.ray_backend.running import placement_of
from raydistill.execution.request import Outcome, StageRequest
from raydistill.execution.run_stage import run_stage
from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import order_stages
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan
from raydistill.runs.folder import StageFolder
from raydistill.runs.placement import Placement, here, write_place
from raydistill.runs.record import Record

HERE = Path(__file__).parent
PATIENCE = 300.0


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the tests of the Ray back end are made of."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(HERE)
    return importlib.import_module("test_ray_backend")


@pytest.fixture
def stages(shared: Any, tmp_path: Path) -> Any:
    return shared.Stages(tmp_path)


@pytest.fixture
def backend(ray_cluster: None, shared: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayBackend]:
    backend = RayBackend()
    yield backend
    backend.close()
    shared.wait_until(shared.nothing_is_held, patience=60.0)


def record_of(request: Any) -> Record:
    record = StageFolder(Path(request.root) / request.folder).record()
    assert record is not None
    return record


# A stage that hangs.


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0), (90, 90.0), (0.5, 0.5), (None, None)],
)
def test_a_timeout_is_written_with_its_unit_or_in_seconds(written: Any, seconds: float | None) -> None:
    assert ResourcesConfig(timeout=written).timeout_seconds == seconds


@pytest.mark.parametrize("written", ["0s", 0, -1, "soon", "90 s", True, "9999999h", []])
def test_what_is_no_duration_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        ResourcesConfig(timeout=written)


def test_a_timeout_is_no_part_of_what_a_stage_is(stages: Any) -> None:
    assert (
        stages.request("stage").fingerprint == stages.request("stage", resources={"timeout": 9}).fingerprint
    )


def test_a_stage_that_is_too_slow_leaves_its_stacks_and_its_checkpoint_and_continues_with_more_time(
    stages: Any, shared: Any
) -> None:
    brake = stages.traces / "slow"
    brake.touch()
    slow = stages.request("stage", **stages.slow(resources={"timeout": 0.5}))
    outcome = run_stage(slow)
    assert outcome.status == "failed"
    assert "`resources.timeout` of 0.5s" in (outcome.error or "")
    assert "\n" not in (outcome.error or "")
    record = record_of(slow)
    assert record.error == outcome.error
    assert "most recent call first" in (record.traceback or "")
    assert "Timeout (" in deadline.read_stacks(slow)
    brake.unlink()
    again = stages.request("stage", **stages.slow())
    assert run_stage(again).status == "done"
    assert "resumed at step" in (Path(again.root) / again.folder / "log.txt").read_text()


def test_a_stage_that_is_in_time_leaves_no_stacks(stages: Any) -> None:
    request = stages.request("stage", resources={"timeout": "1h"})
    assert run_stage(request).status == "done"
    assert not list((Path(request.root) / request.folder).glob("stacks*"))


def test_a_fault_of_its_own_is_what_the_record_says_even_after_the_timeout(stages: Any) -> None:
    model = {"name": "probes:fail_late", "seconds": 0.3}
    outcome = run_stage(stages.request("stage", model=model, resources={"timeout": 0.1}))
    assert "a fault of its own" in (outcome.error or "")


def test_the_clock_of_a_group_that_was_restarted_begins_anew(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now[0]))
    request = stages.request("stage", resources={"timeout": "1h"})
    watch = deadline.DeadlineWatch(request)
    path = deadline.stacks_path(request, 0)
    assert not watch.is_over()
    for process in (1, 2):
        path.write_text(f"attempt {request.attempt}, rank 0, process {process}\n")
        assert not watch.is_over()
        now[0] += 3599.0 + deadline.GRACE_SECONDS
        assert not watch.is_over()
    now[0] += 2.0
    assert watch.is_over()
    assert not deadline.DeadlineWatch(replace(request, attempt="another")).is_over()


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_and_a_group_that_hang_are_ended_and_their_records_say_where_they_hung(
    backend: RayBackend, stages: Any, shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "GRACE_SECONDS", 1.0)
    model = {"name": "probes:meet", "folder": str(stages.traces), "count": 99}  # it waits for ever
    alone = stages.request("alone", model=model, resources={"timeout": "1s"})
    group = stages.request("group", model=model, seed=1, resources={"workers": 2, "timeout": 1})
    assert backend.try_start(alone)
    assert backend.try_start(group)
    ended = shared.finish(backend, [alone, group])
    for request in (alone, group):
        outcome, record = ended[request.name], record_of(request)
        assert outcome.status == "failed"
        assert "`resources.timeout` of 1s" in (outcome.error or "")
        assert str(deadline.stacks_path(request, 0)) in (outcome.error or "")
        assert record.error == outcome.error
        assert (record.traceback or "").count("in meet") == request.shape.workers
    plain = stages.request("plain")
    assert shared.run(backend, plain).status == "done"


# Memory.


class OutOfMemory(LocalBackend):
    """Every attempt ends as Ray's memory monitor ends one."""

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        error = OutOfMemoryError(
            "Task was killed due to the node running low on memory.\nMemory on the node ..."
        )
        return [(name, Outcome("lost", error=describe_loss(name, error))) for name, _ in super().stop()]


def test_a_stage_that_runs_out_of_memory_is_tried_again_a_few_times_and_its_record_says_what_to_change(
    chain: Plan, tmp_path: Path
) -> None:
    graph = order_stages(chain)
    states = run_stages(graph, OutOfMemory(), task=chain.task, root=tmp_path)
    assert states["teacher"].attempts == 4
    record = StageFolder(tmp_path / graph.nodes["teacher"].folder).record()
    assert record is not None
    assert record.error == states["teacher"].error
    assert all(word in str(record.error) for word in ("`resources.memory`", "`batch_size`"))
    assert "\n" not in str(record.error)


@pytest.mark.ray
def test_rays_memory_monitor_ends_a_real_stage_and_the_message_says_what_to_change(tmp_path: Path) -> None:
    used, total = get_used_memory(), get_system_memory()
    if total - used < 3 * GIB:
        pytest.skip("3 GiB of memory must be free")
    limit = {
        "RAY_memory_usage_threshold": str((used + GIB) / total),
        "RAY_memory_monitor_refresh_ms": "100",
        "RAY_task_oom_retries": "0",
    }
    seen = driven("memory", tmp_path, limit)
    assert seen["status"] == "failed"
    assert seen["attempts"] == 2
    assert "ran out of memory" in seen["error"]
    assert "`resources.memory`" in seen["error"]


# A disk that is full in the middle of a file.


class FullDisk(LocalBackend):
    """While the stage `victim` runs, no file grows beyond `LIMIT` bytes: the kernel cuts the write that would."""

    LIMIT = 8192

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        is_full = any(request.name == self.victim for request in self._next)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.LIMIT if is_full else before[0], before[1]))
        try:
            return super().wait(seconds)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A teacher, its targets, a student: each writes more than fits."""
    folder = tmp_path_factory.mktemp("chain")
    inputs = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    np.savez(folder / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    training = {"epochs": 1, "batch_size": 100}
    wide = {"name": "mlp", "widths": [400]}
    stages = {
        "teacher": {"stage": "train", "model": wide, **training},
        "student": {"stage": "distill", "student": wide, "teachers": ["teacher"], **training},
    }
    task = {"name": "tensors", "file": str(folder / "data.npz")}
    return Plan.model_validate({"name": "p", "task": task, "stages": stages})


def files_of(plan: Plan, root: Path) -> dict[str, dict[str, str]]:
    nodes = order_stages(plan).nodes
    folders = {name: StageFolder(root / node.folder) for name, node in nodes.items()}
    assert [folder.damage() for folder in folders.values()] == [None] * 3
    return {name: folder.done_record().payload for name, folder in folders.items()}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["teacher", "teacher.targets", "student"])
def test_a_write_that_fails_midway_leaves_no_result_and_the_next_run_makes_it_whole(
    chain: Plan, tmp_path: Path, victim: str
) -> None:
    graph, root, undisturbed = order_stages(chain), tmp_path / "runs", tmp_path / "undisturbed"
    states = run_stages(graph, FullDisk(victim), task=chain.task, root=root)
    error = str(states[victim].error)
    assert states[victim].status == "failed"
    assert "File too large" in error
    assert "\n" not in error
    folder = StageFolder(root / graph.nodes[victim].folder)
    record = folder.record()
    assert record is None or record.status == "failed"
    assert not list(folder.path.rglob(".*.tmp"))
    again = run_stages(graph, LocalBackend(), task=chain.task, root=root)
    assert again[victim].status == "done"
    run_stages(graph, LocalBackend(), task=chain.task, root=undisturbed)
    assert files_of(chain, root) == files_of(chain, undisturbed)


# Clocks.


@pytest.mark.slow
def test_drivers_whose_clocks_are_years_apart_run_each_stage_once(tmp_path: Path) -> None:
    names = [f"stage{number}" for number in range(4)]
    stages = json.dumps({name: {} for name in names} | {"last": {"reads": names}})
    (tmp_path / "stage0.waits").touch()
    calls = tmp_path / "calls.txt"
    past, future = (counting_driver(tmp_path, stages, shift) for shift in (-1e9, 1e9))
    try:
        wait_until(lambda: calls.exists() and len(calls.read_text().split()) == 4)
        time.sleep(1.0)  # of silence, twenty beats of a lease: neither takes the other for dead
        assert sorted(calls.read_text().split()) == names
        (tmp_path / "stage0.waits").unlink()
        ends = [json.loads(driver.communicate(timeout=PATIENCE)[0]) for driver in (past, future)]
        assert sorted(calls.read_text().split()) == ["last", *names]
        for name in [*names, "last"]:
            assert sorted(end[name] for end in ends) == ["cached", "done"]
    finally:
        for driver in (past, future):
            driver.kill()
            driver.communicate()


def counting_driver(root: Path, stages: str, shift: float) -> "subprocess.Popen[str]":
    """`counting_driver.py` on a machine whose clock is off by `shift` seconds."""
    script = (
        "import runpy, sys, time; sys.argv = sys.argv[1:]; real, shift = time.time, float(sys.argv.pop());"
        " time.time = lambda: real() + shift;"
        f" sys.path.insert(0, {str(HERE)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(HERE / "counting_driver.py"),
        str(root),
        stages,
        "20",
        str(shift),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_an_error_that_ray_brings_from_another_process_is_one_line_with_its_cause() -> None:
    cause = ImportError("libcudart.so.13: no such file")
    error = RayTaskError("TrialActor.step", "Traceback:\n  deep\n", cause, None)
    assert describe_loss("student", error) == f"a process of stage `student` failed: ImportError: {cause}"
    died = RayActorError(
        None, "Traceback (most recent call last):\n  deep\nOSError: disk full", actor_init_failed=True
    )
    assert describe_loss("student", died) == "a process of stage `student` does not start: OSError: disk full"


def test_a_working_folder_that_was_deleted_under_the_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(PlanError, match="the working folder was deleted"):
        backend_module.working_folder()


# What a driver cannot do without.


class FakeRay:
    """A head and a process of the driver's own machine that take connections, and nothing else."""

    def __init__(self) -> None:
        self.head, self.own = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))

    def get_runtime_context(self) -> Any:
        host, port = self.head.getsockname()
        return SimpleNamespace(gcs_address=f"{host}:{port}", get_node_id=lambda: "own")

    def nodes(self) -> list[dict[str, Any]]:
        host, port = self.own.getsockname()
        return [{"NodeID": "own", "NodeManagerAddress": host, "NodeManagerPort": port}]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock by which silence is measured."""
    now = [100.0]
    monkeypatch.setattr(cluster_health, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_head_is_given_time_to_come_back_and_its_silence_is_counted_anew(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    ray = FakeRay()
    monkeypatch.setattr(cluster_health, "ray", ray)
    held, address = cluster_health.health_of(is_own=False), ray.head.getsockname()
    assert held.hold()
    for _ in range(2):
        ray.head.close()
        assert not held.hold()
        now[0] += cluster_health.HEAD_SECONDS - 1.0
        assert not held.hold()
        ray.head = socket.create_server(address)
        assert held.hold()
    ray.head.close()
    assert not held.hold()
    now[0] += cluster_health.HEAD_SECONDS
    with pytest.raises(StageError, match="the head of the Ray cluster"):
        held.hold()
    assert held.is_lost
    ray.own.close()


def test_a_driver_whose_own_machine_has_lost_ray_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    ray = FakeRay()
    monkeypatch.setattr(cluster_health, "ray", ray)
    held = cluster_health.health_of(is_own=False)
    assert held.hold()
    ray.own.close()
    with pytest.raises(StageError, match="on this machine"):
        held.hold()
    ray.head.close()


def test_a_head_that_nobody_starts_again_is_waited_for_but_seconds_and_its_silence_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    ray = FakeRay()
    monkeypatch.setattr(cluster_health, "ray", ray)
    health = cluster_health.health_of(is_own=True)
    ray.head.close()
    assert not health.hold()
    assert "does not answer; waiting 4 s" in caplog.text
    now[0] += 5.0
    with pytest.raises(ClusterLost, match="the same command goes on"):
        health.hold()
    ray.own.close()


def test_a_call_that_ray_never_returns_from_is_given_up_when_the_head_is_gone(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    ray, never = FakeRay(), threading.Event()
    monkeypatch.setattr(cluster_health, "ray", ray)
    monkeypatch.setattr(cluster_health, "LOOK_SECONDS", 0.01)
    guarded = cluster_health.GuardedCalls(cluster_health.health_of(is_own=False))
    assert guarded(divmod, 7, 3) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        guarded(divmod, 7, 0)
    ray.head.close()
    look = cluster_health.ClusterHealth.hold

    def look_later(health: cluster_health.ClusterHealth) -> bool:
        now[0] += cluster_health.HEAD_SECONDS / 3
        return look(health)

    monkeypatch.setattr(cluster_health.ClusterHealth, "hold", look_later)
    with pytest.raises(ClusterLost, match="the head of the Ray cluster"):
        guarded(never.wait, PATIENCE)
    never.set()
    guarded.end()
    ray.own.close()


@pytest.mark.parametrize(
    ("begun", "alive", "told"),
    [
        ([], {"x"}, Placement("starting")),
        (["x"], {"x"}, Placement("running", (here(),))),
        (["x", "y"], {"x", "y"}, Placement("running", (here(),))),
        (["x", "y"], {"x"}, Placement("node lost", (here(),))),
    ],
)
def test_an_attempt_is_where_its_processes_said_they_began(
    tmp_path: Path, begun: list[str], alive: set[str], told: Placement
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for rank, node in enumerate(begun):
        write_place(folder, "now", rank, node)
    write_place(folder, "before", 2, "z")  # left by an attempt that died
    shape = {"workers": 3}
    request = StageRequest("s", "train", "f", "s", str(tmp_path), {}, {}, {}, {}, "now", shape)
    attempt = SimpleNamespace(request=request, is_queued=lambda: False)
    assert placement_of(attempt, alive) == told


# Machines that die. This process may have joined another Ray cluster: the driver is this file, run as a script.


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw."""
    quick = {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_initial_delay_ms": "1000",
    }
    return driven("machines", tmp_path_factory.mktemp("machines"), quick)


def driven(what: str, folder: Path, settings: dict[str, str]) -> dict[str, Any]:
    """Run this file as a script; what it printed last."""
    environment = os.environ | {
        "RAY_raylet_start_wait_time_s": "120",  # on a machine that is busy with other tests
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__)), what, str(folder)]
    ended = subprocess.run(
        command, cwd=HERE, env=environment | settings, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_machine_that_dies_with_half_the_teachers_costs_only_their_last_steps(seen: dict[str, Any]) -> None:
    assert seen["node"]["statuses"] == ["done"] * 4
    assert seen["node"]["attempts"] == [1, 1, 2, 2]
    assert seen["node"]["resumed"] == 2
    assert seen["node"]["weights"] == seen["undisturbed"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_whose_head_dies_ends_with_one_line_and_is_continued_by_the_next_one(
    seen: dict[str, Any],
) -> None:
    assert seen["head"]["error"].startswith("the head of the Ray cluster")
    assert "the same command goes on" in seen["head"]["error"]
    assert "\n" not in seen["head"]["error"]
    assert seen["head"]["seconds"] < 60.0  # or Ray ends the process
    assert seen["head"]["record"] is None
    assert set(seen["again"]["statuses"]) <= {
        "done",
        "cached",
    }  # workers on other machines may end what they began
    assert seen["again"]["weights"] == seen["undisturbed"]


class Teachers:
    """Four slow trainings over one storage root."""

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        folder.mkdir()
        self.folder, self.root = folder, folder / "runs"
        model = {"name": "probes:slow", "folder": str(folder)}
        teacher = {"stage": "train", "model": model, "epochs": 60, "batch_size": 32, "replicas": 4}
        self.plan = Plan.model_validate({"name": "p", "task": task, "stages": {"teacher": teacher}})
        self.graph = order_stages(self.plan)
        self.folders = [self.root / node.folder for node in self.graph.nodes.values()]

    def run(self, backend: Any) -> dict[str, Any]:
        states = run_stages(self.graph, backend, task=self.plan.task, root=self.root).values()
        return {
            "statuses": [state.status for state in states],
            "attempts": sorted(state.attempts for state in states),
            "resumed": sum("resumed at step" in (path / "log.txt").read_text() for path in self.folders),
            "weights": [
                StageFolder(path).done_record().payload["model.safetensors"] for path in self.folders
            ],
        }

    def run_and(self, disturb: Callable[[], None], backend: Any) -> dict[str, Any]:
        """Run slowly; when all have a checkpoint, disturb; then let the rest pass quickly."""
        brake = self.folder / "slow"
        brake.write_text("0.5")
        checkpoints = [path / "checkpoint" / "checkpoint.json" for path in self.folders]

        def act() -> None:
            wait_until(lambda: all(path.exists() for path in checkpoints))
            disturb()
            brake.unlink()

        threading.Thread(target=act, daemon=True).start()
        return self.run(backend)


def drive_machines(folder: Path) -> None:
    """The driver: a machine of two dies under it, and then the head."""
    sys.path.append(str(HERE))
    import psutil
    from ray.cluster_utils import Cluster
    from test_ray_backend import Stages

    task = Stages(folder).task
    undisturbed = Teachers(folder / "undisturbed", task)
    seen: dict[str, Any] = {"undisturbed": undisturbed.run(LocalBackend())["weights"]}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    machines = [cluster.add_node(num_cpus=2) for _ in range(2)]
    backend = RayBackend(cluster.address)
    node = Teachers(folder / "node", task)
    seen["node"] = node.run_and(lambda: cluster.remove_node(machines[0], allow_graceful=False), backend)
    cluster.add_node(num_cpus=2)
    cluster_health.HEAD_SECONDS = 5.0
    head = Teachers(folder / "head", task)
    [server] = [one for one in psutil.Process().children(recursive=True) if one.name() == "gcs_server"]
    killed: list[float] = []

    def kill_head() -> None:
        killed.append(time.monotonic())
        server.kill()
        wait_until(lambda: "error" in seen.get("head", {}))

    try:
        head.run_and(kill_head, backend)
    except StageError as error:
        record = StageFolder(head.folders[0]).record()
        seen["head"] = {"error": error.message, "record": record and record.status}
        backend.close()
        seen["head"]["seconds"] = time.monotonic() - killed[0]
    seen["again"] = head.run(LocalBackend())
    print(json.dumps(seen), flush=True)  # noqa: T201
    cluster.shutdown()


def drive_memory(folder: Path) -> None:
    """The driver: a stage takes more memory than its machine may give."""
    sys.path.append(str(HERE))
    from test_ray_backend import Stages

    model = {"name": "probes:eat_memory", "most": 2 * GIB}
    graph, plan = Stages(folder).graph("stage", model=model, resources={"retries": 1})
    backend = RayBackend(cpus=1)
    [state] = run_stages(graph, backend, task=plan.task, root=folder / "runs").values()
    backend.close()
    print(json.dumps({"status": state.status, "error": state.error, "attempts": state.attempts}))  # noqa: T201


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


if __name__ == "__main__":
    {"machines": drive_machines, "memory": drive_memory}[sys.argv[1]](Path(sys.argv[2]))
