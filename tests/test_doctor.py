"""What `distill doctor` finds: one oracle per trouble, each made here on purpose."""

import http.server
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raydistill import doctor
from raydistill.cli import main
from raydistill.doctor import Examination, Finding, Reply, examine
from raydistill.execution.ray_backend import probes
from raydistill.plan.schema import Plan


def plan_with(**changes: Any) -> Plan:
    stage = {"stage": "train", "model": {"name": "mlp", "widths": [8]}, "epochs": 1} | changes
    return Plan.model_validate({"name": "p", "task": {"name": "mnist"}, "stages": {"teacher": stage}})


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray cluster, token or tracking store of the person who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "MLFLOW_TRACKING_URI",
    ):
        monkeypatch.delenv(name, raising=False)


def one(findings: list[Finding], check: str) -> Finding:
    [found] = [finding for finding in findings if finding.check == check]
    return found


def test_a_sound_machine_passes(tmp_path: Path) -> None:
    findings = examine(Examination(tmp_path / "runs", plan_with()))
    assert {finding.verdict for finding in findings} <= {"ok", "warn"}
    assert {finding.check for finding in findings} >= {"versions", "GPUs", "storage root", "tracking", "data"}
    assert not (tmp_path / "runs").exists()


def test_what_a_run_would_find_before_its_first_stage_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = one(examine(Examination(tmp_path / "runs", plan_with())), "survey")
    assert (sound.verdict, sound.text) == ("ok", "5,000 samples, 1 model fit for training")
    (tmp_path / "nets_of_a_user.py").write_text(
        "from torch import nn\ndef build(num_classes): return nn.Flatten()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = plan_with(model={"name": "nets_of_a_user:build"})
    wrong = one(examine(Examination(tmp_path / "runs", plan)), "survey")
    assert wrong.verdict == "fail"
    assert wrong.text.startswith("`teacher`: model `nets_of_a_user:build` gives 784 outputs for each sample")


def test_the_exit_code_says_whether_a_check_failed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    sound = CliRunner().invoke(main, ["doctor", "--runs", str(tmp_path)])
    assert sound.exit_code == 0, sound.output
    broken = CliRunner().invoke(main, ["doctor", "--runs", str(file)])
    assert broken.exit_code == 1
    assert "is no folder" in broken.output


def test_a_full_disk_is_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE", 1 << 62)
    assert one(examine(Examination(tmp_path)), "storage root").verdict == "warn"


def test_a_module_that_cannot_be_imported_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "doctor_probe_broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "doctor_probe_sound.py").write_text("def build(): ...\n")
    for name, verdict in (("doctor_probe_broken", "fail"), ("doctor_probe_sound", "ok")):
        found = one(examine(Examination(tmp_path, plan_with(model={"name": f"{name}:build"}))), "modules")
        assert found.verdict == verdict
        assert name in found.text
        assert ("a_package_that_is_not_there" in found.text) is (verdict == "fail")


def test_each_node_reads_its_own_data_root_and_the_fingerprint_does_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    task: dict[str, Any] = {"name": "tensors", "file": "$RAYDISTILL_DATA/digits.npz"}
    for name, labels in (("a", [0, 1, 2]), ("b", [0, 1, 2]), ("c", [2, 1, 0])):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "digits.npz", inputs=np.eye(3, dtype=np.float32), labels=np.array(labels))
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path / "a"))
    plan = Plan.model_validate({**plan_with().model_dump(mode="json"), "task": task})
    sent = plan.task.model_dump(mode="json")
    assert sent["file"] == "$RAYDISTILL_DATA/digits.npz"

    found = {}
    for name in ("a", "b", "c", "d"):
        monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path / name))
        found[name] = probes.find_data(sent)
    assert found["a"] == found["b"] != found["c"]
    assert str(tmp_path / "d" / "digits.npz") in found["d"]["problem"]
    verdicts = [
        finding.verdict for finding in doctor._data([Reply(name, value) for name, value in found.items()])
    ]
    assert verdicts == ["ok", "ok", "fail", "fail"]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ok"),
        ({"raydistill": None}, "warn"),  # a job brings it along
        ({"numpy": "1.0"}, "warn"),
        ({"ray": "2.9.3"}, "fail"),
        ({"python": "3.99.0"}, "fail"),
        ({"torch": None}, "fail"),
    ],
)
def test_versions_are_judged_by_what_must_agree(changes: dict[str, str | None], verdict: str) -> None:
    own = probes.read_versions(doctor.PACKAGES)
    found = doctor._versions("node", own | changes, own)
    assert found.verdict == verdict
    assert all(name in found.text + found.way_out for name in changes)


@pytest.mark.parametrize(("offset", "verdict"), [(0.0, "ok"), (60.0, "warn"), (-60.0, "warn")])
def test_a_clock_that_is_off_is_found_whichever_way(offset: float, verdict: str) -> None:
    def ask(question: Callable[..., Any], *arguments: Any) -> list[Reply]:
        return [Reply("node", time.time() + offset)]

    [found] = doctor._clocks(ask)
    assert found.verdict == verdict
    assert ("off" in found.text) is (verdict == "warn")


@pytest.fixture
def mlflow_server() -> Iterator[Callable[[int, str], str]]:
    """Serves one answer to everything."""
    servers = []

    def serve(status: int, text: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(
            target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "text", "verdict", "words"),
    [
        (200, "3.17.2", "ok", "MLflow 3.17.2"),
        (200, "2.22.0", "fail", "MLflow 2.22.0"),
        (403, "Invalid Host header", "fail", "error 403"),
    ],
)
def test_a_tracking_server_is_asked_for_its_version(
    tmp_path: Path, mlflow_server: Callable[[int, str], str], status: int, text: str, verdict: str, words: str
) -> None:
    uri = mlflow_server(status, text)
    found = one(list(doctor._tracking(tmp_path, uri)), "tracking")
    assert found.verdict == verdict
    assert words in found.text


def test_a_tracking_server_that_is_down_fails_without_showing_a_password(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{unused.getsockname()[1]}"
        found = one(list(doctor._tracking(tmp_path, uri)), "tracking")
    assert found.verdict == "fail"
    assert "secret" not in found.text + found.way_out


def test_an_unreadable_token_is_a_failed_check_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    findings = examine(Examination(tmp_path))
    assert one(findings, "Ray token").verdict == "fail"
    assert one(findings, "storage root").verdict == "ok"


def test_a_ray_cluster_that_does_not_answer_is_a_failed_check(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        findings = examine(Examination(tmp_path, address=address))
    assert one(findings, "Ray cluster").verdict == "fail"
    assert one(findings, "storage root").verdict == "ok"


def test_a_probe_is_answered_only_from_the_same_folder(tmp_path: Path) -> None:
    """Two folders stand for two machines whose storage roots bear one name."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for root in (mine, other):
        (root / ".probe").mkdir(parents=True)
    (mine / ".probe" / "driver").write_text("word")
    assert probes.answer_probe(str(mine), str(mine / ".probe"), "node", "word", patience=0) is None
    assert probes.appears(mine / ".probe" / "node", "word")
    asked = (str(other), str(other / ".probe"), "node", "word", 0)
    assert "another folder" in str(probes.answer_probe(*asked))
    (other / ".probe" / "driver").write_text("another word")
    assert "another folder" in str(probes.answer_probe(*asked))
    assert "no such folder" in str(probes.answer_probe(str(tmp_path / "none"), "", "node", "word", 0))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_no_storage_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert one(examine(Examination(tmp_path)), "storage root").verdict == "fail"
    tmp_path.chmod(0o700)
