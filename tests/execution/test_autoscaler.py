"""What a Ray cluster that can grow is asked for: with an autoscaler that only listens, and with Ray's own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from raydistill.errors import PlanError
from raydistill.execution.ray_backend.autoscaler import REMIND_SECONDS, Growth, starts_machines
from raydistill.execution.ray_backend.feasible import check_feasible
from raydistill.execution.ray_backend.resources import NO_LIMIT, WHOLE, Limit, Resources, resources_of_worker
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan

HERE = Path(__file__).parent
PATIENCE = 180.0
ONE, FOUR = Resources(cpus=WHOLE), Resources(cpus=4 * WHOLE, gpus=WHOLE)


class Autoscaler:
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, float]]] = []
        self.labels: list[dict[str, str]] = []

    def __call__(self, bundles: list[dict[str, float]], labels: list[dict[str, str]]) -> None:
        assert len(bundles) == len(labels)
        self.asked.append(bundles)
        self.labels = labels


def test_it_is_asked_for_what_runs_and_what_waits_and_only_when_that_changes() -> None:
    autoscaler = Autoscaler()
    growth = Growth(autoscaler)
    growth.want([ONE], [], NO_LIMIT)
    assert autoscaler.asked == [], "what runs has its room"
    for _ in range(3):
        growth.want([ONE], [("large", FOUR)], NO_LIMIT)
    growth.want([ONE, FOUR], [], NO_LIMIT)
    assert autoscaler.asked == [[{"CPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}], []]


def test_it_is_asked_for_no_more_than_the_plan_may_hold() -> None:
    autoscaler = Autoscaler()
    Growth(autoscaler).want([ONE, ONE], [("large", FOUR), *[("small", ONE)] * 9], Limit(cpus=5))
    assert autoscaler.asked == [[{"CPU": 1.0}] * 5], "the large one does not fit beside what runs"


def test_the_labels_of_a_stage_go_with_its_request() -> None:
    autoscaler = Autoscaler()
    worker = resources_of_worker(ResourcesConfig(labels={"region": "eu"}), [])
    Growth(autoscaler).want([ONE], [("there", worker)], NO_LIMIT)
    assert autoscaler.asked == [[{"CPU": 1.0}] * 2], "a label is no resource"
    assert autoscaler.labels == [{}, {"region": "eu"}]


def test_what_was_asked_for_is_given_back_once() -> None:
    autoscaler = Autoscaler()
    growth = Growth(autoscaler)
    growth.give_back()
    assert autoscaler.asked == []
    growth.want([], [("large", FOUR)], NO_LIMIT)
    growth.give_back()
    growth.give_back()
    assert autoscaler.asked == [[{"CPU": 4.0, "GPU": 1.0}], []]


def test_who_waits_for_long_is_told_where_to_look(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    growth = Growth(Autoscaler(), clock=lambda: now[0])
    for seconds in (0.0, REMIND_SECONDS - 1, REMIND_SECONDS, REMIND_SECONDS + 1, 2 * REMIND_SECONDS):
        now[0] = seconds
        growth.want([], [("large", FOUR)], NO_LIMIT)
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "`large` has waited 5 min for room",
        "`large` has waited 10 min for room",
    ]


def test_a_ray_cluster_of_fixed_machines_has_no_autoscaler() -> None:
    fixed = f"node_{'0' * 56}"
    assert not starts_machines([])
    assert not starts_machines([""])
    assert not starts_machines([fixed, fixed])
    assert starts_machines(["ray.head.default", "gpus"])


def graph_of(**resources: Any) -> Graph:
    teacher = {"stage": "train", "model": {"name": "mlp"}, "epochs": 1, "resources": resources}
    return order_stages(
        Plan.model_validate({"name": "p", "task": {"name": "mnist"}, "stages": {"teacher": teacher}})
    )


@pytest.mark.parametrize(
    "resources", [{"cpus": 3.0}, {"gpus": 1.0, "accelerator": "H100"}, {"custom": {"licence": 1.0}}]
)
def test_what_no_machine_has_now_is_no_error_where_machines_can_be_had(resources: dict[str, Any]) -> None:
    nodes = list(graph_of(**resources).nodes.values())
    with pytest.raises(PlanError, match="teacher"):
        check_feasible(nodes, [ONE])
    assert check_feasible(nodes, [ONE], can_grow=True) == nodes
    with pytest.raises(PlanError, match=r"--max-cpus 0\.5"):
        check_feasible(nodes, [ONE], Limit(cpus=0.5), can_grow=True)
    assert check_feasible(list(graph_of().nodes.values()), [ONE], can_grow=True) == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_for_which_there_is_no_machine_gets_one_and_asks_for_no_more(
    tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    driver = [sys.executable, str(Path(__file__)), str(tmp_path), str(free_ports(1)[0])]
    ended = subprocess.run(driver, cwd=HERE, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout.splitlines()[-1])
    asked = [{"CPU": 2.0}]
    assert seen == {
        "started": [False, True],
        "machines": [1, 2],
        "outcome": "done",
        "asked": [asked, []],
    }


def drive(folder: Path, port: int) -> None:
    """A head with one CPU, and an autoscaler that may start one machine of three: for a stage that asks for two."""
    address = f"127.0.0.1:{port}"
    (folder / "autoscaler.json").write_text(json.dumps(config_of(address)))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--include-dashboard=false"]
    short = tempfile.mkdtemp(prefix="ray-")  # sockets lie there, whose names are at most 107 bytes long
    command += [f"--temp-dir={short}", f"--autoscaling-config={folder / 'autoscaler.json'}"]
    environment = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (folder / "head.log").open("w") as said:
        head = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        wait_until(lambda: "will now block" in (folder / "head.log").read_text(), head)
        print(json.dumps(grow(folder, address, head)))  # noqa: T201
    except AssertionError:
        for log in Path(short).glob("session_2*/logs/monitor.*"):
            print(log.name, log.read_text()[-2000:], file=sys.stderr)  # noqa: T201
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(head.pid, number)
                head.wait(40)
        shutil.rmtree(short, ignore_errors=True)


def config_of(address: str) -> dict[str, Any]:
    """Ray's own stand-in for a cloud, which starts nodes on this machine."""
    empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    more = ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")
    return {
        "cluster_name": "small",
        "max_workers": 1,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "large": {"resources": {"CPU": 3}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.05,
        "file_mounts_sync_continuously": False,
        **{name: [] for name in (*empty, *more, "rsync_filter")},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
    }


def grow(folder: Path, address: str, head: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """What is seen by a back end."""
    sys.path.append(str(HERE))
    import ray
    from test_ray_backend import Stages, finish

    from raydistill.execution.ray_backend import RayBackend, autoscaler
    from raydistill.execution.ray_backend.running import machines_alive

    ray.init(address=address, log_to_driver=False)
    wait_until(autoscaler.is_there, head)
    stages = Stages(folder)
    graph, _ = stages.graph("large", resources={"cpus": 2.0})
    request = stages.request("large", resources={"cpus": 2.0})
    backend = RayBackend(address)
    try:
        backend.check_feasible(list(graph.nodes.values()))
        seen: dict[str, Any] = {"started": [backend.try_start(request)], "machines": [len(machines_alive())]}
        backend.want(list(graph.nodes.values()))
        seen["asked"] = [requested()]
        wait_until(lambda: len(machines_alive()) == 2, head)
        seen["started"].append(backend.try_start(request))
        seen["machines"].append(len(machines_alive()))
        [outcome] = finish(backend, [request]).values()
    finally:
        backend.close()
    seen["asked"].append(requested())
    ray.shutdown()
    return seen | {"outcome": outcome.status}


def requested() -> Any:
    """What Ray's autoscaler was last asked for."""
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "null")


def wait_until(claim: Callable[[], Any], head: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        assert head.poll() is None
        time.sleep(0.2)


if __name__ == "__main__":
    drive(Path(sys.argv[1]), int(sys.argv[2]))
