"""A Ray cluster of several nodes on this machine: where stages run, who joins late, and who does not see the storage.

This process may have joined another Ray cluster, so the nodes live in a driver of their own: this file, run as a
script, which prints what it saw as one line of JSON.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HERE = Path(__file__).parent
PATIENCE = 300.0


def meet(folder: str, count: int, num_classes: int, input_shape: tuple[int, ...]) -> Any:
    """A model that leaves its node's id, and is built only when `count` have."""
    import ray
    import torch

    (Path(folder) / str(os.getpid())).write_text(ray.get_runtime_context().get_node_id())
    wait_until(lambda: len(list(Path(folder).iterdir())) >= count)
    return torch.nn.Linear(input_shape[0], num_classes)


def wait_until(claim: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw."""
    command = [sys.executable, str(Path(__file__)), str(tmp_path_factory.mktemp("nodes"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_stages_run_on_all_nodes_also_on_one_that_joined_late(seen: dict[str, Any]) -> None:
    assert seen["started_on_two_nodes"] == [True, True, False]  # a CPU each
    assert seen["started_on_three_nodes"] is True
    assert seen["outcomes"] == ["done"] * 3
    assert len(set(seen["places"])) == 3


def test_one_node_is_not_asked_about_the_storage(seen: dict[str, Any]) -> None:
    assert seen["asked_on_one_node"] == 0
    assert seen["asked_on_two_nodes"] == 1  # the driver's own needs no asking


def test_a_node_without_the_storage_root_is_named_before_anything_starts(seen: dict[str, Any]) -> None:
    if seen["blind"] is None:
        pytest.skip("mount namespaces need root")
    assert "does not share the storage root" in seen["blind"]["error"]
    assert seen["blind"]["address"] in seen["blind"]["error"]
    assert "--runs" in seen["blind"]["error"]
    assert "\n" not in seen["blind"]["error"]


def test_a_node_that_joins_late_without_the_storage_root_is_mentioned_and_ends_nothing(
    seen: dict[str, Any],
) -> None:
    if seen["blind"] is None:
        pytest.skip("mount namespaces need root")
    [warning] = seen["blind"]["warnings"]
    assert "does not share the storage root" in warning
    assert warning.endswith("; nothing is run there")
    assert seen["blind"]["started"] == [True, True, True, False], "a CPU on each of the others"
    assert not seen["blind"]["is_used"]


def test_the_doctor_finds_the_node_without_the_storage_root(seen: dict[str, Any]) -> None:
    if seen["blind"] is None:
        pytest.skip("mount namespaces need root")
    assert sorted(seen["blind"]["shared storage"]) == ["fail", "ok", "ok", "ok"]
    assert seen["blind"]["versions"] == ["ok"] * 4


def test_no_probe_is_left_behind(seen: dict[str, Any]) -> None:
    assert seen["left"] == []


def drive(folder: Path) -> None:
    """The driver: two nodes, then three, then one more that sees an empty folder in place of the storage root."""
    sys.path.append(str(HERE))
    from ray.cluster_utils import Cluster
    from test_ray_backend import Stages, finish

    from raydistill.execution.ray_backend import RayBackend

    stages, places = Stages(folder), folder / "places"
    requests = meeting(stages, places, range(3))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    backend = RayBackend(cluster.address)
    try:
        seen: dict[str, Any] = {"asked_on_one_node": count_asked(backend, stages.root, cluster.address)}
        cluster.add_node(num_cpus=1)
        seen["asked_on_two_nodes"] = count_asked(backend, stages.root, cluster.address)
        seen["started_on_two_nodes"] = [backend.try_start(request) for request in requests]
        cluster.add_node(num_cpus=1)
        seen["started_on_three_nodes"] = backend.try_start(requests[2])
        seen["outcomes"] = sorted(outcome.status for outcome in finish(backend, requests).values())
        seen["places"] = [path.read_text() for path in places.iterdir()]
        seen["blind"] = with_blind_node(backend, cluster.address, stages, folder)
        seen["left"] = [path.name for path in stages.root.glob(".probe-*")]
    finally:
        backend.close()
        cluster.shutdown()
    print(json.dumps(seen))  # noqa: T201


def meeting(stages: Any, places: Path, seeds: range) -> list[Any]:
    """Stages of which each leaves where it is, and waits until three have."""
    places.mkdir()
    model = {"name": "test_several_nodes:meet", "folder": str(places), "count": 3}
    return [stages.request(f"stage{seed}", model=model, seed=seed) for seed in seeds]


def count_asked(backend: Any, root: Path, address: str) -> int:
    """How many nodes are asked when a run begins now."""
    from raydistill.execution.ray_backend import storage

    backend._connected()
    asked: list[int] = []
    ask = storage.ask_nodes
    storage.ask_nodes = lambda nodes, *rest: (asked.append(len(nodes)), ask(nodes, *rest))[1]  # type: ignore[assignment]
    try:
        storage.SharedStorage().check(str(root))
    finally:
        storage.ask_nodes = ask
    return sum(asked)


def with_blind_node(backend: Any, address: str, stages: Any, folder: Path) -> dict[str, Any] | None:
    """What is said of a node for which the storage root is an empty folder; None where that cannot be made."""
    from test_ray_backend import finish

    from raydistill.doctor import Examination, examine
    from raydistill.errors import PlanError
    from raydistill.execution.ray_backend.nodes import list_nodes
    from raydistill.execution.ray_backend.storage import SharedStorage

    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        return None
    root, warnings = stages.root, Warnings()
    logging.getLogger("raydistill").addHandler(warnings)
    before = {node.id for node in list_nodes()}
    ray = f"{sys.executable} -m ray.scripts.scripts"
    script = f"mount -t tmpfs none {root} && exec {ray} start --address={address} --num-cpus=1 --block"
    said = (folder / "blind.log").open("w+")
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script], stdout=said, stderr=said, start_new_session=True
    )
    try:
        wait_until(
            lambda: len([node for node in list_nodes() if node.is_alive and node.id not in before]) == 1
        )
        [node] = [node for node in list_nodes() if node.id not in before]
        requests = meeting(stages, folder / "beside", range(10, 14))
        started = [backend.try_start(request) for request in requests]
        finish(backend, requests[:3])
        findings = examine(Examination(root, address=address))
        try:
            SharedStorage().check(str(root))
            error = ""
        except PlanError as refused:
            error = refused.message
        verdicts = {
            check: [finding.verdict for finding in findings if finding.check == check]
            for check in ("shared storage", "versions")
        }
        return {
            "error": error,
            "address": node.address,
            "warnings": warnings.lines,
            "started": started,
            "is_used": node.id in {path.read_text() for path in (folder / "beside").iterdir()},
        } | verdicts
    finally:
        process.send_signal(signal.SIGTERM)  # it ends the processes that it has started
        process.wait(30)


class Warnings(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
