"""Stages on a real, small Ray cluster: side by side, warm, killed, stopped, and data-parallel."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import OutOfMemoryError
from safetensors.torch import load_file

from raydistill.errors import PlanError
from raydistill.execution.ray_backend import RayBackend, attempts
from raydistill.execution.ray_backend.failures import describe_loss
from raydistill.execution.ray_backend.feasible import check_feasible
from raydistill.execution.ray_backend.resources import (
    GIB,
    WHOLE,
    Limit,
    Resources,
    capacity,
    resources_of_machine,
    resources_of_worker,
)
from raydistill.execution.request import Outcome, StageRequest, build_request
from raydistill.execution.run_stage import run_stage
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan
from raydistill.runs.context import claim_attempt
from raydistill.runs.folder import StageFolder
from raydistill.runs.placement import Placement, here

HERE = Path(__file__).parent
PATIENCE = 300.0


class Stages:
    """Requests for small `train` stages over one storage root."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "runs"
        self.traces = folder / "traces"
        self.traces.mkdir(parents=True)
        generator = np.random.default_rng(0)
        inputs = generator.normal(size=(240, 8)).astype(np.float32)
        np.savez(folder / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
        self.task = {"name": "tensors", "file": str(folder / "data.npz")}

    def graph(self, name: str, **config: Any) -> tuple[Graph, Plan]:
        stage = {"stage": "train", "epochs": 1, "batch_size": 32, "model": {"name": "mlp", "widths": [8]}}
        plan = Plan.model_validate({"name": "p", "task": self.task, "stages": {name: stage | config}})
        return order_stages(plan), plan

    def request(self, name: str, **config: Any) -> StageRequest:
        """A new attempt, prepared as the scheduler does it."""
        graph, plan = self.graph(name, **config)
        node = graph.nodes[name]
        request = build_request(node, graph, plan.task, self.root, attempt=uuid.uuid4().hex)
        folder = StageFolder(self.root / request.folder)
        folder.create(node.identity)
        claim_attempt(folder, request.attempt)
        return request

    def tracing(self, **config: Any) -> dict[str, Any]:
        """A stage whose model leaves the id of the process that builds it."""
        return {"model": {"name": "probes:leave_trace", "folder": str(self.traces)}} | config

    def slow(self, **config: Any) -> dict[str, Any]:
        """A stage that lasts until the file `slow` is gone, and then a little more."""
        return {"model": {"name": "probes:slow", "folder": str(self.traces)}, "epochs": 60} | config

    def pids(self, rank: int = 0) -> list[int]:
        """Processes that built a model as this rank, in no order."""
        return [int(path.read_text()) for path in self.traces.glob(f"*-rank{rank}.pid") if path.read_text()]


def finish(backend: RayBackend, requests: Sequence[StageRequest]) -> dict[str, Outcome]:
    """Wait for all of them."""
    names = {request.name for request in requests}
    ended: dict[str, Outcome] = {}
    deadline = time.monotonic() + PATIENCE
    while set(ended) < names:
        assert time.monotonic() < deadline, f"still running: {names - set(ended)}"
        ended |= dict(backend.wait(1.0))
    return ended


def run(backend: RayBackend, request: StageRequest) -> Outcome:
    assert backend.try_start(request)
    return finish(backend, [request])[request.name]


def wait_until(claim: Callable[[], Any], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def weights(request: StageRequest) -> dict[str, torch.Tensor]:
    return load_file(Path(request.root) / request.folder / "model.safetensors")


def checkpoint(request: StageRequest) -> Path:
    return Path(request.root) / request.folder / "checkpoint" / "checkpoint.json"


def nothing_is_held() -> bool:
    import ray

    return ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path)


@pytest.fixture
def backend(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayBackend]:
    """A back end whose workers import `probes` from the driver's folder; it must give everything back."""
    monkeypatch.chdir(HERE)
    backend = RayBackend()
    yield backend
    backend.close()
    wait_until(nothing_is_held, patience=60.0)


@pytest.mark.ray
def test_stages_run_side_by_side(backend: RayBackend, stages: Stages) -> None:
    model = {"name": "probes:meet", "folder": str(stages.traces), "count": 2}
    requests = [stages.request(f"stage{seed}", model=model, seed=seed) for seed in (0, 1)]
    assert all(backend.try_start(request) for request in requests)
    assert {outcome.status for outcome in finish(backend, requests).values()} == {"done"}


@pytest.mark.ray
def test_a_stage_worker_is_reused_and_gives_the_numbers_of_this_process(
    backend: RayBackend, stages: Stages, tmp_path: Path
) -> None:
    requests = [stages.request(f"stage{seed}", **stages.tracing(seed=seed)) for seed in (0, 1)]
    assert [run(backend, request).status for request in requests] == ["done", "done"]
    assert len(stages.pids()) == 1
    plain = stages.request("plain")
    assert run(backend, plain).status == "done"
    here = Stages(tmp_path / "here")
    here.task = stages.task
    again = here.request("plain")
    assert run_stage(again).status == "done"
    for name, value in weights(again).items():
        assert torch.equal(weights(plain)[name], value)


@pytest.mark.ray
def test_an_idle_worker_makes_room_for_another_shape(backend: RayBackend, stages: Stages) -> None:
    small, large = (
        stages.request(f"stage{cpus}", **stages.tracing(seed=cpus, resources={"cpus": cpus}))
        for cpus in (1, 4)
    )
    assert run(backend, small).status == "done"
    assert run(backend, large).status == "done"
    assert len(set(stages.pids())) == 2


@pytest.mark.ray
def test_a_stage_without_room_waits(backend: RayBackend, stages: Stages) -> None:
    (stages.traces / "slow").touch()
    first, second = (
        stages.request(f"stage{seed}", **stages.slow(seed=seed, resources={"cpus": 3})) for seed in (0, 1)
    )
    assert backend.try_start(first)
    assert not backend.try_start(second)
    (stages.traces / "slow").unlink()
    assert finish(backend, [first])["stage0"].status == "done"
    assert run(backend, second).status == "done"


@pytest.mark.ray
def test_a_killed_stage_is_lost_and_its_retry_resumes_to_the_same_numbers(
    backend: RayBackend, stages: Stages, tmp_path: Path
) -> None:
    (stages.traces / "slow").touch()
    first = stages.request("stage", **stages.slow())
    assert backend.try_start(first)
    wait_until(checkpoint(first).exists)
    assert backend.placements() == {"stage": Placement("running", (here(),))}
    os.kill(stages.pids()[0], signal.SIGKILL)
    lost = finish(backend, [first])["stage"]
    assert lost.status == "lost"
    assert "resources.memory" in (lost.error or "")
    (stages.traces / "slow").unlink()
    retry = stages.request("stage", **stages.slow())
    assert run(backend, retry).status == "done"
    assert "resumed at step" in (Path(retry.root) / retry.folder / "log.txt").read_text()
    undisturbed = Stages(tmp_path / "undisturbed")
    undisturbed.task = stages.task
    whole = undisturbed.request("stage", **undisturbed.slow())
    assert run(backend, whole).status == "done"
    for name, value in weights(whole).items():
        assert torch.equal(weights(retry)[name], value)


@pytest.mark.ray
def test_a_stage_for_which_others_leave_no_room_is_queued_and_not_starting(
    backend: RayBackend, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "QUEUED_SECONDS", 0.0)

    @ray.remote(num_cpus=4)
    class Other:
        def is_there(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.is_there.remote())
    request = stages.request("stage")
    assert backend.try_start(request), "we count what is there, and what is ours"
    assert backend.placements() == {"stage": Placement("waiting for room")}
    ray.kill(other)
    wait_until(lambda: backend.placements().get("stage") != Placement("waiting for room"))
    assert finish(backend, [request])["stage"].status == "done"


@pytest.mark.ray
def test_a_stage_that_fails_is_not_lost_and_its_worker_is_replaced(
    backend: RayBackend, stages: Stages
) -> None:
    model = {"name": "probes:fail_on_last_rank"}  # there is no group: asking for a rank is an error
    failed = run(backend, stages.request("wrong", model=model))
    assert failed.status == "failed"
    assert "process group" in (failed.error or "")
    assert run(backend, stages.request("right", **stages.tracing())).status == "done"


@pytest.mark.ray
def test_stop_leaves_checkpoints_of_stages_and_groups(backend: RayBackend, stages: Stages) -> None:
    (stages.traces / "slow").touch()
    alone = stages.request("alone", **stages.slow(epochs=5000))
    group = stages.request("group", **stages.slow(epochs=5000, seed=1, resources={"workers": 2}))
    assert backend.try_start(alone)
    assert backend.try_start(group)
    wait_until(lambda: checkpoint(alone).exists() and checkpoint(group).exists())
    assert {name: outcome.status for name, outcome in backend.stop()} == {
        "alone": "stopped",
        "group": "stopped",
    }
    assert checkpoint(alone).exists()
    assert checkpoint(group).exists()
    assert not (stages.root / ".ray-train").exists()


@pytest.mark.ray
def test_what_does_not_stop_is_ended(
    backend: RayBackend, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydistill.execution.ray_backend.running.STOP_SECONDS", 1.0)
    model = {"name": "probes:meet", "folder": str(stages.traces), "count": 99}  # it waits for ever
    alone = stages.request("alone", model=model)
    group = stages.request("group", model=model, seed=1, resources={"workers": 2})
    assert backend.try_start(alone)
    assert backend.try_start(group)
    wait_until(lambda: len(stages.pids()) == 2 and len(stages.pids(rank=1)) == 1)
    assert {name: outcome.status for name, outcome in backend.stop()} == {"alone": "lost", "group": "lost"}
    wait_until(nothing_is_held, patience=60.0)


@pytest.mark.ray
def test_a_worker_that_is_told_to_end_leaves_a_checkpoint_of_that_step_and_is_not_used_again(
    backend: RayBackend, stages: Stages
) -> None:
    (stages.traces / "slow").touch()
    first = stages.request("stage", **stages.slow())
    assert backend.try_start(first)
    wait_until(checkpoint(first).exists)
    os.kill(stages.pids()[0], signal.SIGTERM)
    outcome = finish(backend, [first])["stage"]
    assert (outcome.status, outcome.preempted) == ("lost", True)
    assert outcome.error == "its process was told to end"
    step = json.loads(checkpoint(first).read_text())["progress"]["step"]
    (stages.traces / "slow").unlink()
    retry = stages.request("stage", **stages.slow())
    assert run(backend, retry).status == "done"
    log = (Path(retry.root) / retry.folder / "log.txt").read_text()
    assert f"stopped: stopped at step {step};" in log
    assert f"resumed at step {step}" in log
    assert len(stages.pids()) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_a_group_equals_one_worker_and_a_killed_group_equals_it_too(
    backend: RayBackend, stages: Stages, tmp_path: Path
) -> None:
    (stages.traces / "slow").touch()
    killed = stages.request("group", **stages.slow(resources={"workers": 2}))
    assert backend.try_start(killed)
    wait_until(checkpoint(killed).exists)
    os.kill(stages.pids(rank=1)[0], signal.SIGKILL)
    (stages.traces / "slow").unlink()
    assert finish(backend, [killed])["group"].status == "done"
    assert "resumed at step" in (Path(killed.root) / killed.folder / "log.txt").read_text()
    others = []
    for workers in (2, 1):
        other = Stages(tmp_path / f"{workers}")
        other.task = stages.task
        others.append(other.request("group", **other.slow(resources={"workers": workers})))
        assert run(backend, others[-1]).status == "done"
    records = [StageFolder(Path(other.root) / other.folder).done_record() for other in others]
    assert [(record.workers, record.nodes) for record in records] == [(2, (here(),)), (1, (here(),))]
    undisturbed, single = map(weights, others)
    for name, value in weights(killed).items():
        assert torch.equal(undisturbed[name], value)
        torch.testing.assert_close(single[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.ray
def test_a_group_without_retries_ends_when_a_rank_dies(backend: RayBackend, stages: Stages) -> None:
    (stages.traces / "slow").touch()
    request = stages.request("group", **stages.slow(resources={"workers": 2, "retries": 0}))
    assert backend.try_start(request)
    wait_until(checkpoint(request).exists)
    os.kill(stages.pids(rank=1)[0], signal.SIGKILL)
    outcome = finish(backend, [request])["group"]
    assert outcome.status == "failed"
    assert str(outcome.error).endswith("(after 0 restarts)")
    assert len(stages.pids(rank=1)) == 1


@pytest.mark.ray
def test_a_fault_of_one_rank_ends_its_group_at_once_and_is_what_the_record_says(
    backend: RayBackend, stages: Stages
) -> None:
    request = stages.request("group", model={"name": "probes:fail_on_last_rank"}, resources={"workers": 2})
    outcome = run(backend, request)
    assert outcome.status == "failed"
    assert "a fault of its own" in (outcome.error or "")
    record = StageFolder(stages.root / request.folder).record()
    assert record is not None
    assert record.error == outcome.error


@pytest.mark.ray
@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"cpus": 5}, ["`big`", "5 CPUs", "4 CPUs", "`stages.big.resources`"]),
        ({"gpus": 1}, ["1 GPU", "0 GPUs"]),
        ({"workers": 3, "cpus": 2}, ["3 workers of 2 CPUs"]),
        ({"memory": "900000GiB"}, ["900000.0 GiB"]),
    ],
)
def test_what_never_fits_is_refused_before_anything_starts(
    backend: RayBackend, stages: Stages, resources: dict[str, Any], words: list[str]
) -> None:
    graph, _ = stages.graph("big", resources=resources)
    with pytest.raises(PlanError) as error:
        backend.check_feasible(list(graph.nodes.values()))
    assert all(word in error.value.message for word in words)


@pytest.mark.ray
def test_a_fresh_driver_packs_four_stages_on_a_gpu_and_keeps_the_terminal_clean(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models.py", "tasks.py"):  # a user's own modules do not hide ours
        (tmp_path / name).write_text("raise RuntimeError('the wrong module')")
    (tmp_path / "probes.py").write_text((HERE / "probes.py").read_text())
    monkeypatch.chdir(tmp_path)
    model = {"name": "probes:leave_trace", "folder": str(stages.traces)}
    resources = {"cpus": 0.5, "gpus": 0.25}
    names = [f"stage{seed}" for seed in range(5)]
    requests = [
        stages.request(name, model=model, seed=seed, resources=resources).to_dict()
        for seed, name in enumerate(names)
    ]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    environment |= {"HOME": str(tmp_path), "RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 1})}
    driver = subprocess.run(
        [sys.executable, str(HERE / "fresh_driver.py"), "requests.json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert driver.stderr == ""
    (line,) = driver.stdout.splitlines()
    answer = json.loads(line)
    assert answer["started"] == names[:4]
    assert answer["gpu_is_shared_out"]
    # Only Ray believes in that GPU: our modules ran, and torch says so.
    assert all("CUDA" in error or "NVIDIA" in error for error in answer["errors"].values())
    assert answer["has_own_handler"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265", "somewhere"])
def test_an_address_where_no_ray_cluster_is_gets_one_line(address: str, stages: Stages) -> None:
    with pytest.raises(PlanError, match="Ray cluster"):
        RayBackend(address).try_start(stages.request("stage"))


def test_tenths_of_a_cpu_add_up() -> None:
    tenth = resources_of_worker(ResourcesConfig(cpus=0.1), [])
    assert tenth * 10 == Resources(cpus=WHOLE)


@pytest.mark.parametrize(
    ("worker", "count"),
    [
        (Resources(WHOLE), 8),
        (Resources(WHOLE, WHOLE // 4), 8),
        (Resources(WHOLE // 10, WHOLE // 4), 8),
        (Resources(WHOLE, WHOLE * 6 // 10), 2),
        (Resources(WHOLE, 2 * WHOLE), 1),
        (Resources(WHOLE, 0, 3 * GIB), 5),
    ],
)
def test_a_machine_of_8_cpus_2_gpus_and_16_gib_holds(worker: Resources, count: int) -> None:
    assert capacity(Resources(8 * WHOLE, 2 * WHOLE, 16 * GIB), worker) == count


NAMED = resources_of_machine(
    {
        "CPU": 8.0,
        "GPU": 2.0,
        "memory": 16.0 * GIB,
        "object_store_memory": 1e9,
        "node:10.0.0.1": 1.0,
        "accelerator_type:A100": 1.0,
        "licence": 3.0,
    },
    {"region": "eu", "ray.io/node-id": "f" * 56},
)


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({"custom": {"licence": 1}, "gpus": 0}, 3),
        ({"custom": {"licence": 2}, "gpus": 0}, 1),
        ({"custom": {"licence": 0.5}, "gpus": 0}, 6),
        ({"accelerator": "A100"}, 2),  # as many as there are GPUs: a type does not run out
        ({"accelerator": "H100"}, 0),
        ({"custom": {"other": 1}}, 0),
        ({"labels": {"region": "eu"}}, 2),  # as many as there are GPUs: nobody takes a label away
        ({"labels": {"region": "us"}}, 0),
    ],
)
def test_custom_resources_and_types_of_gpus_are_counted(resources: dict[str, Any], count: int) -> None:
    worker = resources_of_worker(ResourcesConfig(**resources), [NAMED])
    assert capacity(NAMED, worker) == count
    assert worker.is_within(NAMED) == (count > 0)
    assert (NAMED - worker).amount("licence") == NAMED.amount("licence") - worker.amount("licence")


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"accelerator": "H100"}, "the accelerator `H100`.*accelerators there: `A100`;"),
        ({"custom": {"license": 1}}, "the custom resource `license`.*custom resources there: `licence`;"),
        ({"labels": {"region": "us"}}, "the label `region: us`.*labels there: `region: eu`;"),
        ({"custom": {"licence": 4}}, "4 of `licence`, which the Ray cluster never has.*3 of `licence`"),
    ],
)
def test_what_no_machine_has_is_refused_with_what_there_is(
    resources: dict[str, Any], words: str, stages: Stages
) -> None:
    graph, _ = stages.graph("stage", resources=resources)
    with pytest.raises(PlanError, match=words) as refused:
        check_feasible(list(graph.nodes.values()), [NAMED])
    assert "\n" not in refused.value.message


@pytest.mark.ray
def test_a_stage_runs_on_nodes_with_its_labels_alone(backend: RayBackend, stages: Stages) -> None:
    [node] = ray.nodes()
    here = stages.request("here", resources={"labels": {"ray.io/node-id": node["NodeID"]}})
    there = stages.request("there", resources={"labels": {"ray.io/node-id": "f" * 56}}, seed=1)
    assert not backend.try_start(there)
    assert run(backend, here).status == "done"


@pytest.mark.ray
def test_what_runs_holds_no_more_than_the_limit(
    ray_cluster: None, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    backend = RayBackend(limit=Limit(cpus=2))
    first, second, third = (stages.request(f"stage{seed}", seed=seed) for seed in range(3))
    assert [backend.try_start(request) for request in (first, second, third)] == [True, True, False]
    assert set(finish(backend, [first, second])) == {"stage0", "stage1"}
    assert backend.try_start(third)
    assert set(finish(backend, [third])) == {"stage2"}
    backend.close()


@pytest.mark.parametrize(
    ("limit", "resources", "option"),
    [
        (Limit(cpus=3), {"workers": 2, "cpus": 2}, "--max-cpus 3"),
        (Limit(gpus=0.5), {"gpus": 1}, "--max-gpus 0.5"),
        (Limit(gpus=0), {"gpus": 0.25}, "--max-gpus 0"),
    ],
)
def test_a_stage_that_needs_more_than_the_limit_is_refused_beforehand(
    limit: Limit, resources: dict[str, Any], option: str, stages: Stages
) -> None:
    machines = [Resources(8 * WHOLE, 2 * WHOLE, 16 * GIB)] * 2
    graph, _ = stages.graph("stage", resources=resources)
    nodes = list(graph.nodes.values())
    check_feasible(nodes, machines)
    with pytest.raises(PlanError, match=f"`stage`.*`{option}`.*`stages.stage.resources`") as refused:
        check_feasible(nodes, machines, limit)
    assert "\n" not in refused.value.message


def test_without_gpus_to_hold_a_stage_that_asks_for_none_in_particular_takes_none(stages: Stages) -> None:
    limit, machine = Limit(gpus=0), Resources(8 * WHOLE, 2 * WHOLE, 16 * GIB)
    assert resources_of_worker(ResourcesConfig(), [limit.of(machine)]).gpus == 0
    graph, _ = stages.graph("stage")
    check_feasible(list(graph.nodes.values()), [machine], limit)


def test_a_stage_takes_a_gpu_only_where_there_is_one() -> None:
    resources = ResourcesConfig()
    assert resources_of_worker(resources, [Resources(WHOLE), Resources(WHOLE, WHOLE)]).gpus == WHOLE
    assert resources_of_worker(resources, [Resources(WHOLE)]).gpus == 0


def test_running_out_of_memory_names_the_setting_to_change() -> None:
    line = describe_loss(
        "teacher", OutOfMemoryError("Task was killed due to the node running low on memory.\n...")
    )
    assert "out of memory" in line
    assert "`teacher`" in line
    assert "`resources.memory`" in line
    assert "\n" not in line
