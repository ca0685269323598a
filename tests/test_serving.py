"""`distill serve`: what is asked over HTTP is answered as `predict` answers, and mistakes in one line."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predicted import trained

from raydistill.errors import PlanError
from raydistill.inference.given import Answering
from raydistill.inference.predict import predict_files
from raydistill.plan.schema import build_task
from raydistill.prediction import load_predictor, predict_arrays
from raydistill.serving import MOST_BYTES

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that learned a little of the embedded digits."""
    return trained({"name": "mnist"}, tmp_path_factory.mktemp("runs"), {"name": "mlp", "widths": [30]})


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    """The address of a server in another process."""
    command = [sys.executable, "-m", "raydistill.cli", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line.split(" answers at ")[1].split("/invocations")[0]
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")


def ask(address: str, body: bytes | None = None, path: str = "/invocations") -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"{address}{path}", body, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def png(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def npy(values: np.ndarray) -> bytes:
    np.save(stream := io.BytesIO(), values)
    return stream.getvalue()


def ranked(answer: Any) -> list[list[tuple[str, float]]]:
    return [[(one["label"], one["probability"]) for one in row] for row in answer["predictions"]]


def test_a_picture_is_answered_as_predict_answers(server: str, model: Path, tmp_path: Path) -> None:
    picture = png(RANDOM.integers(0, 256, (40, 30, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(picture)
    (expected,) = predict_files(model, [tmp_path / "a.png"], top=3)
    status, answer = ask(server, picture)
    assert (status, ranked(answer)) == (200, [list(expected.ranked)])
    status, answer = ask(server, json.dumps({"inputs": [base64.b64encode(picture).decode()]}).encode())
    assert (status, ranked(answer)) == (200, [list(expected.ranked)])


def test_arrays_are_answered_in_every_form(server: str, model: Path) -> None:
    digits = RANDOM.integers(0, 256, (3, 1, 28, 28), np.uint8)
    expected = predict_arrays(load_predictor(model), digits)
    pixels = (digits / 255).astype(np.float32)
    for body in (npy(digits), npy(pixels), json.dumps({"inputs": pixels.tolist()}).encode()):
        status, answer = ask(server, body, "/invocations?top=10")
        assert status == 200
        found = np.array([[dict(row)[str(name)] for name in range(10)] for row in ranked(answer)])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_it_says_what_it_takes(server: str) -> None:
    status, told = ask(server, path="/model")
    assert status == 200
    assert told["outputs"]["class_names"] == [str(digit) for digit in range(10)]
    assert told["inputs"]["shape"] == ["batch", 1, 28, 28]


@pytest.mark.parametrize(
    ("body", "path", "status", "words"),
    [
        (b"", "", 400, "no body"),
        (b"no picture", "", 400, "picture 0 is not a readable picture: its content has no known format"),
        (b'{"inputs": ', "", 400, "the JSON cannot be read"),
        (b'{"rows": []}', "", 400, "no list `inputs`"),
        (b'{"inputs": []}', "", 400, "the model takes (1, 28, 28)"),
        (b'{"inputs": [[1], [1, 2]]}', "", 400, "neither numbers in lists of equal lengths nor"),
        (b'{"inputs": [[0.5]]}', "", 400, "has the shape (1, 1); the model takes (1, 28, 28)"),
        (b'{"inputs": ["%"]}', "", 400, "picture 0 is a text, and no base64"),
        (npy(np.full((1, 28, 28), 3.0)), "", 400, "pixels as numbers are in [0, 1]"),
        (npy(np.full((1, 28, 28), np.nan)), "", 400, "not finite"),
        (npy(np.zeros((1, 28, 28)))[:-5], "", 400, "the array cannot be read"),
        (npy(np.zeros((1, 28, 28))).replace(b"(1, 28, 28), }        ", b"(999999999, 28, 28), }"), "", 400, "hold"),
        (npy(np.zeros((1, 28, 28))), "?top=0", 400, "`top` is `0`"),
        (npy(np.zeros((1, 28, 28))), "?top=many", 400, "`top` is `many`"),
        (b"\0" * (MOST_BYTES + 1), "", 413, "64 MiB at most"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_in_one_line(
    server: str, body: bytes, path: str, status: int, words: str
) -> None:
    found, answer = ask(server, body, f"/invocations{path}")
    assert found == status
    assert words in answer["error"]
    assert "\n" not in answer["error"]


def test_pickled_arrays_are_not_loaded(server: str) -> None:
    np.save(stream := io.BytesIO(), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert ask(server, stream.getvalue()) == (
        400,
        {"error": "the array cannot be read: it holds Python objects"},
    )


def test_other_addresses_are_not_found(server: str) -> None:
    assert ask(server, path="/other")[0] == 404
    assert ask(server, path="/invocations")[0] == 405


def test_it_is_heard_by_this_machine_alone(server: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    assert host == "127.0.0.1"
    with socket.socket() as other:  # no other address of this machine answers
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", int(port))) != 0


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raydistill.cli", "serve", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_taken_port_is_an_error_of_one_line(server: str, model: Path) -> None:
    port = server.rpartition(":")[2]
    ended = run(str(model), "--port", port)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another one with `--port`\n"
    )


def test_no_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    ended = run(str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: `{tmp_path}` holds no model")
    assert len(ended.stderr.splitlines()) == 1


def test_an_interrupt_ends_it_in_order(model: Path) -> None:
    command = [sys.executable, "-m", "raydistill.cli", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" answers at ")[1].split("/invocations")[0]
        assert ask(address, npy(np.zeros((1, 28, 28))))[0] == 200
        os.kill(process.pid, signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (0, "", "")


def test_a_model_of_numbers_takes_no_picture(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", inputs=RANDOM.random((42, 5), np.float32), labels=np.arange(42) % 2)
    task = {"name": "tensors", "file": str(tmp_path / "a.npz")}
    model = trained(task, tmp_path / "runs", {"name": "mlp", "widths": [4]})
    answering = Answering.of(load_predictor(model), build_task(task))
    with pytest.raises(PlanError, match="numbers of shape"):
        answering.pictures([b""])
    assert answering.arrays([[2.0, 0, 0, 0, 0]]).shape == (1, 2)
