import ast
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from raydistill.errors import StoreError
from raydistill.runs import files
from raydistill.runs.files import atomic_write, json_line, make_folder, read_json, write_json
from raydistill.runs.folder import StageFolder
from raydistill.runs.record import Record

KILLED = """
import os, signal, sys
from pathlib import Path
from raydistill.runs import files
path, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
if moment == "before fsync":
    os.fsync = die
elif moment == "before rename":
    Path.replace = die
with files.atomic_write(path) as temporary:
    temporary.write_text('{"value":')
    if moment == "half-way":
        die()
    temporary.write_text('{"value": "new"}')
"""


@pytest.mark.parametrize("moment", ["half-way", "before fsync", "before rename"])
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"value": "old"})
    writer = subprocess.run([sys.executable, "-c", KILLED, str(path), moment])
    assert writer.returncode == -9
    assert read_json(path) == {"value": "old"}


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file.json"
    write_json(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr({"fsync": os, "replace": Path, "open": Path}[step], step, full)
        with pytest.raises(StoreError) as error:
            write_json(path, "new")
    assert error.value.message == f"cannot write `{path}`: No space left on device"
    assert read_json(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_flies_and_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, "old")

    def write_half(temporary: Path) -> None:
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        write_half(temporary)
    assert read_json(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        write_json(tmp_path / "file.json", 1)
    with pytest.raises(StoreError, match="Permission denied"):
        make_folder(tmp_path / "folder")


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(StoreError, match="cannot create the folder"):
        make_folder(tmp_path / "runs" / "stages")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1', b"nonsense"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged") as error:
        read_json(path)
    assert str(path) in error.value.message


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"file.json` is missing"):
        read_json(tmp_path / "file.json")


def test_numbers_that_json_does_not_have_are_texts_that_float_reads(tmp_path: Path) -> None:
    values = {"loss": [math.inf, -math.inf, math.nan], "step": (1, 2.5), "name": "NaN"}
    write_json(tmp_path / "values.json", values)

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no JSON")

    for text in ((tmp_path / "values.json").read_text(), json_line(values)):
        read = json.loads(text, parse_constant=refuse)
        assert read == {"loss": ["Infinity", "-Infinity", "NaN"], "step": [1, 2.5], "name": "NaN"}
    assert [float(text) for text in read["loss"][:2]] == values["loss"][:2]


def test_a_record_gets_its_infinite_metric_back(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "train-abc")
    folder.create({})
    metrics = {"test/loss": math.inf, "test/accuracy": 0.5}
    record = Record(kind="train", fingerprint="abc", status="done", seconds=1, finished=1, metrics=metrics)
    folder.write_record(record)
    assert "Infinity," not in (folder.path / "record.json").read_text().replace('"Infinity"', "")
    assert folder.done_record().metrics == metrics


@pytest.mark.parametrize("folder", ["runs", "targets", "training", "stages", "export.py"])
def test_nothing_but_strict_json_is_written(folder: str) -> None:
    place = Path(files.__file__).parents[1] / folder
    for path in [place] if place.is_file() else place.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("json.dumps", "json.dump"):
                assert any(keyword.arg == "allow_nan" for keyword in call.keywords), f"{path}:{call.lineno}"


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_a_file_is_the_umasks_affair_whatever_its_writer_does(
    tmp_path: Path, umask: int, expected: int
) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "model.safetensors") as temporary:
            save_file({"a": np.zeros(1)}, temporary)
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("model.safetensors", "a.json")}
    assert modes == {expected}
