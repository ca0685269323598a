"""Files are UTF-8 whatever the locale; what the locale cannot show is shown plainly."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for top in ("orchestrator", "models", "tasks") for path in (ROOT / top).rglob("*.py"))
OTHERS = ("os", "gzip", "webbrowser", "zipfile", "tarfile", "Image", "image", "archive")
PLAN = """\
name: size
task: {name: tensors, file: daten.npz}
tracking: {experiment: größer}
stages:
  model: {stage: train, model: {name: mlp, widths: [4]}, epochs: 1, replicas: 2}
"""


def texts_without_encoding(path: Path) -> Iterator[str]:
    """Lines that read or write text in whatever encoding the locale has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, ast.unparse(node.func.value)
        words = {keyword.arg for keyword in node.keywords}
        modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        is_binary = name == "open" and (owner in OTHERS or any("b" in str(mode) for mode in modes))
        is_log = name == "open" and not modes and "self." in owner  # a class of its own
        if (
            name in ("open", "read_text", "write_text")
            and "encoding" not in words
            and not is_binary
            and not is_log
        ):
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_whoever_opens_text_says_its_encoding(path: Path) -> None:
    assert list(texts_without_encoding(path)) == []


@pytest.mark.slow
def test_a_run_ends_well_where_the_locale_is_ascii(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    np.savez(tmp_path / "daten.npz", inputs=np.eye(3, dtype=np.float32)[labels], labels=labels)
    (tmp_path / "plan.yaml").write_text(PLAN, encoding="utf-8")
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}
    words = [
        sys.executable,
        "-P",
        "-m",
        "raydistill.cli",
        "run",
        "plan.yaml",
        "--local",
        "--tracking-uri",
        "http://h:9",
    ]
    ended = subprocess.run(words, cwd=tmp_path, env=os.environ | plain, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert b"model x2" in ended.stdout
    assert b"Traceback" not in ended.stderr
    [plan] = tmp_path.glob("runs/plans/*/*/plan.yaml")
    assert yaml.safe_load(plan.read_bytes())["tracking"]["experiment"] == "größer"


def test_output_degrades_where_the_locale_cannot_show_it() -> None:
    words = "from raydistill.cli.streams import degrade_output as d; d(); print('a ×3 → 1 ± 2 … ─ größer')"
    plain = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    shown = subprocess.run(
        [sys.executable, "-c", words], env=plain, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "a x3 -> 1 +- 2 ... - gr??er\n"
