"""A storage root behind a URL, used by machines that share nothing else: each is a mirror of its own here."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner

import raydistill
from raydistill import run_plan
from raydistill.cli import main
from raydistill.errors import StoreError
from raydistill.runs.bucket import Bucket
from raydistill.runs.folder import StageFolder
from raydistill.runs.mirror import mirror_at, open_storage, storage_name
from raydistill.runs.plan_run import finished_record
from raydistill.runs.view import RunView

HERE = Path(__file__).parent
PATIENCE = 120.0
BRAKE = 0.01
STAGES: dict[str, Any] = {
    "teacher": {"stage": "train", "model": {"name": "mlp", "widths": [16]}, "epochs": 8, "batch_size": 32},
    "student": {
        "stage": "distill",
        "student": {"name": "mlp", "widths": [8]},
        "teachers": ["teacher"],
        "method": {"method": "hinton", "temperature": 4},
        "epochs": 8,
        "batch_size": 32,
    },
}


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(600, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    task = {"name": "tensors", "file": str(tmp_path / "data.npz")}
    (tmp_path / "p.yaml").write_text(
        json.dumps({"name": "p", "task": task, "tracking": "none", "stages": STAGES})
    )
    return tmp_path / "p.yaml"


Machine = Callable[[str], None]


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds, which are not what these tests are about."""
    monkeypatch.setattr(run_plan, "write_report_of", lambda run: None)


@pytest.fixture
def on_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Be another machine: what was fetched so far is not there."""

    def be(name: str) -> None:
        monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / name))
        mirror_at.cache_clear()

    yield be
    mirror_at.cache_clear()


def run(plan_file: Path, root: Path | str, **overrides: Any) -> RunView:
    return raydistill.run(raydistill.load_plan(plan_file, overrides), runs=root, local=True)


def statuses(view: RunView) -> dict[str, str]:
    return {name: stage.status for name, stage in view.stages.items()}


def numbers(view: RunView) -> dict[str, Any]:
    """Of every stage: SHA-256 of all it made, and its metrics."""
    records = {name: finished_record(stage.folder.path) for name, stage in view.stages.items()}
    return {name: (record.payload, record.metrics) for name, record in records.items() if record}


def test_another_machine_finds_what_one_made_with_the_bytes_of_a_folder(
    plan_file: Path, storage_url: str, tmp_path: Path, on_machine: Machine
) -> None:
    in_folder = numbers(run(plan_file, tmp_path / "folder"))
    on_machine("one")
    first = run(plan_file, storage_url)
    assert statuses(first) == dict.fromkeys(("teacher", "teacher.targets", "student"), "done")
    assert numbers(first) == in_folder
    on_machine("other")
    second = run(plan_file, storage_url)
    assert statuses(second) == dict.fromkeys(("teacher", "teacher.targets", "student"), "cached")
    assert numbers(second) == in_folder
    folder = second["student"].folder.path
    assert not (folder / "model.safetensors").exists()  # nobody needed it here
    assert raydistill.predict(second["student"], np.zeros((2, 8), np.float32)).probabilities.shape == (2, 3)
    assert storage_name(second.root) == storage_url
    keys = Bucket(storage_url).listing("")
    assert f"plans/p/{first.run_id}/report.html" in keys
    assert not [key for key in keys if "checkpoint" in key or "place-" in key or ".tmp" in key]


@pytest.mark.usefixtures("no_report")
def test_only_what_a_stage_reads_is_fetched(plan_file: Path, storage_url: str, on_machine: Machine) -> None:
    on_machine("one")
    run(plan_file, storage_url)
    on_machine("other")
    view = run(plan_file, storage_url, **{"stages.student.method.temperature": 5})
    assert statuses(view) == {"teacher": "cached", "teacher.targets": "cached", "student": "done"}
    there = {
        name: sorted(path.name for path in stage.folder.path.iterdir()) for name, stage in view.stages.items()
    }
    assert "logits-00000.arrow" in there["teacher.targets"]
    assert "model.safetensors" not in there["teacher"]


@pytest.mark.usefixtures("no_report")
def test_a_damaged_object_is_named_and_made_again(
    plan_file: Path, storage_url: str, on_machine: Machine
) -> None:
    on_machine("one")
    view = run(plan_file, storage_url)
    before = numbers(view)
    bucket = Bucket(storage_url)
    key = f"stages/{view['teacher.targets'].folder.path.name}/logits-00000.arrow"
    content = bytearray(bucket.read(key).content)  # type: ignore[union-attr]
    content[len(content) // 2] ^= 1
    bucket.write(key, bytes(content))
    on_machine("other")
    failed = run(plan_file, storage_url, **{"stages.student.method.temperature": 5})
    assert statuses(failed)["student"] == "failed"
    assert f"`{storage_url}/{key}` is missing or damaged" in str(failed["student"].error)
    again = run(plan_file, storage_url, **{"stages.student.method.temperature": 5})
    assert statuses(again) == {"teacher": "cached", "teacher.targets": "done", "student": "done"}
    assert numbers(again)["teacher.targets"] == before["teacher.targets"]


@pytest.mark.usefixtures("no_report")
def test_an_object_that_is_gone_is_made_again(plan_file: Path, storage_url: str, on_machine: Machine) -> None:
    on_machine("one")
    view = run(plan_file, storage_url)
    Bucket(storage_url).delete([f"stages/{view['student'].folder.path.name}/model.safetensors"])
    again = run(plan_file, storage_url)
    assert statuses(again) == {"teacher": "cached", "teacher.targets": "cached", "student": "done"}
    assert numbers(again) == numbers(view)


@pytest.mark.usefixtures("no_report")
def test_a_stage_that_stopped_goes_on_elsewhere_with_the_same_bytes(
    plan_file: Path, storage_url: str, tmp_path: Path, on_machine: Machine, driver: "Driver"
) -> None:
    whole = numbers(run(plan_file, tmp_path / "folder"))
    driver.start(plan_file, storage_url, tmp_path / "one")
    wait_until(lambda: any("distill-" in key for key in checkpoints(storage_url)))
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.end() == -signal.SIGKILL
    on_machine("other")
    view = run(plan_file, storage_url)
    assert statuses(view) == {"teacher": "cached", "teacher.targets": "cached", "student": "done"}
    assert "resumed at step" in (view["student"].folder.path / "log.txt").read_text()
    assert numbers(view) == whole
    assert not checkpoints(storage_url)


@pytest.mark.usefixtures("no_report")
def test_two_machines_at_once_do_no_work_twice(
    plan_file: Path, storage_url: str, tmp_path: Path, on_machine: Machine, driver: "Driver"
) -> None:
    driver.start(plan_file, storage_url, tmp_path / "one")
    wait_until(lambda: any("train-" in key for key in checkpoints(storage_url)))
    on_machine("other")
    view = run(plan_file, storage_url)
    assert driver.end() == 0, driver.output.read_text()
    outcomes = [statuses(view), last_statuses(storage_url, but=view.run_id)]
    assert all(
        sorted(pair) == ["cached", "done"] for pair in zip(*(one.values() for one in outcomes), strict=True)
    )


@pytest.mark.usefixtures("no_report")
def test_what_is_cleaned_is_gone_for_everybody(
    plan_file: Path, storage_url: str, on_machine: Machine
) -> None:
    on_machine("one")
    run(plan_file, storage_url)
    view = run(plan_file, storage_url, **{"stages.student.method.temperature": 5})
    on_machine("other")
    cleaned = CliRunner().invoke(main, ["clean", "--keep-runs", "1", "--yes", "--runs", storage_url])
    assert cleaned.exit_code == 0, cleaned.output
    stages = {key.split("/")[1] for key in Bucket(storage_url).listing("stages/")}
    assert stages == {stage.folder.path.name for stage in view.stages.values()}
    on_machine("one")
    listed = CliRunner().invoke(main, ["list", "stages", "--runs", storage_url, "--json"])
    assert len(json.loads(listed.stdout)) == 3, listed.output


@pytest.mark.usefixtures("no_report")
def test_what_nobody_reads_makes_room(
    plan_file: Path, storage_url: str, on_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine("one")
    view = run(plan_file, storage_url)
    monkeypatch.setenv("RAYDISTILL_CACHE_GB", "0.000001")
    student, teacher = view["student"].folder.path, view["teacher"].folder.path
    StageFolder(student).fetch()
    assert (student / "model.safetensors").exists()  # it is being read
    assert not (teacher / "model.safetensors").exists()
    monkeypatch.delenv("RAYDISTILL_CACHE_GB")
    assert StageFolder(teacher).payload("model.safetensors").exists()


@pytest.mark.usefixtures("no_report")
def test_a_store_that_takes_nothing_is_told_before_anything_is_trained(
    plan_file: Path, storage_url: str, on_machine: Machine
) -> None:
    on_machine("one")
    wrong = storage_url.replace("bucket-", "no-such-")
    done = CliRunner().invoke(main, ["run", str(plan_file), "--local", "--runs", wrong])
    assert done.exit_code != 0
    assert "bucket does not exist" in done.output
    assert "Traceback" not in done.output
    assert not list(open_storage(wrong).glob("stages/*"))


@pytest.mark.usefixtures("no_report")
def test_names_from_a_store_do_not_lead_out_of_the_mirror(
    plan_file: Path, storage_url: str, tmp_path: Path, on_machine: Machine
) -> None:
    on_machine("one")
    view = run(plan_file, storage_url)
    key = f"stages/{view['student'].folder.path.name}/record.json"
    bucket = Bucket(storage_url)
    record = json.loads(bucket.read(key).content)  # type: ignore[union-attr]
    record["payload"]["../../../escaped"] = "0" * 64
    bucket.write(key, json.dumps(record).encode())
    on_machine("other")
    with pytest.raises(StoreError):
        StageFolder(open_storage(storage_url) / key.removesuffix("/record.json")).fetch()
    assert not list(tmp_path.rglob("escaped"))


class Driver:
    """Starts `distill` in a process of its own, as another machine."""

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self.server, self.output, self.pid = server, folder / "terminal.txt", 0

    def start(self, plan_file: Path, url: str, cache: Path) -> None:
        environment = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        order = {
            "arguments": ["run", str(plan_file), "--local", "--runs", url],
            "output": str(self.output),
            "brake": BRAKE,
            "environment": {**environment, "RAYDISTILL_CACHE": str(cache)},
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        self.pid = self.end()

    def end(self) -> int:
        """The next number that it says: the id of the process, then its exit code."""
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    command = [sys.executable, str(HERE / "killable_driver.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Driver(server, tmp_path)
        assert server.stdin is not None
        server.stdin.close()


def checkpoints(url: str) -> list[str]:
    return [key for key in Bucket(url).listing("stages/") if key.endswith("checkpoint/checkpoint.json")]


def last_statuses(url: str, but: str) -> dict[str, str]:
    bucket = Bucket(url)
    [key] = [key for key in bucket.listing("plans/") if key.endswith("results.json") and but not in key]
    stages = json.loads(bucket.read(key).content)["stages"]  # type: ignore[union-attr]
    return {name: stage["status"] for name, stage in stages.items()}


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Line:
    """A connection to a server, through a port of its own, that can be cut."""

    def __init__(self, address: str, port: int) -> None:
        server = urlsplit(address)
        self._server, self.address = (server.hostname, server.port), f"http://127.0.0.1:{port}"
        self.is_cut, self.cuts = False, 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float) -> None:
        self.is_cut = True
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self.is_cut = False

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(inner,), daemon=True).start()

    def _serve(self, inner: socket.socket) -> None:
        self.cuts += self.is_cut
        with inner, suppress(OSError):
            if self.is_cut:
                return
            with socket.create_connection(self._server) as outer:
                back = threading.Thread(target=self._pipe, args=(outer, inner))
                back.start()
                self._pipe(inner, outer)
                back.join()

    def _pipe(self, source: socket.socket, target: socket.socket) -> None:
        self._open.add(source)
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)


@pytest.mark.usefixtures("no_report")
def test_a_connection_that_is_cut_for_seconds_costs_nothing(
    plan_file: Path,
    storage_url: str,
    tmp_path: Path,
    on_machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    free_ports: Callable[[int], list[int]],
) -> None:
    whole = numbers(run(plan_file, tmp_path / "folder"))
    line = Line(os.environ["AWS_ENDPOINT_URL"], *free_ports(1))
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.address)
    on_machine("one")

    def cut_three_times() -> None:
        for _ in range(3):
            time.sleep(0.7)
            line.cut(1.5)

    cutter = threading.Thread(target=cut_three_times)
    cutter.start()
    view = run(plan_file, storage_url)
    cutter.join()
    line.close()
    assert numbers(view) == whole
    assert line.cuts > 0
