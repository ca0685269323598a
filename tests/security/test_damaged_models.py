"""Damaged model folders: whatever is wrong with one, every command that reads it answers with a line that says so."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file, save_model

from raydistill.cli import main
from raydistill.inference.form import Form
from raydistill.inference.predict import read_inputs
from raydistill.models.build import build_model
from raydistill.tasks.mnist import Mnist

SECONDS = 5.0
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
VALUES: dict[str, Any] = {
    "model": {"name": "mlp", "num_classes": None, "options": {"widths": [3]}},
    "num_classes": 2,
    "input_shape": [1, 28, 28],
    "class_names": ["ant", "bee"],
    "inputs": "as they come",
    "input_dtype": "float32",
    "mean": [[[0.1]]],
    "std": [[[0.3]]],
    "task": {"name": "mnist"},
}


class Touch:
    """What a pickle may do: make a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("ran"),)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound model, and an input for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / DESCRIPTION).write_text(json.dumps(VALUES))
    save_model(build_model("mlp", {"widths": [3]}, (1, 28, 28), 2), str(tmp_path / "model" / WEIGHTS))
    np.save("input.npy", np.zeros((1, 28, 28), np.float32))
    return tmp_path / "model"


def bytes_of(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        before = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content if isinstance(content, bytes) else content(before))

    return damage


def tensors(**changed: torch.Tensor | None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        both = {**load_file(folder / WEIGHTS), **{key.replace("_", "."): new for key, new in changed.items()}}
        save_file({key: value for key, value in both.items() if value is not None}, folder / WEIGHTS)

    return damage


def text(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / DESCRIPTION).write_text(content) and None


def values(**changed: Any) -> Callable[[Path], None]:
    return text(json.dumps({**VALUES, **changed}))


def model(name: str, **options: Any) -> Callable[[Path], None]:
    return values(model={"name": name, "options": options})


def nested(depth: int) -> dict[str, Any]:
    """Branches of branches: a model in a model in a model."""
    inner: dict[str, Any] = {"name": "mlp"}
    for _ in range(depth):
        inner = {"name": "branched", "model": inner}
    return inner


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
DAMAGED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "truncated": (WEIGHTS, bytes_of(lambda before: before[: len(before) // 2])),
    "empty": (WEIGHTS, bytes_of(b"")),
    "pickled": (WEIGHTS, bytes_of(pickle.dumps(Touch()))),
    "a header of terabytes": (WEIGHTS, bytes_of(len(HEADER).to_bytes(8, "little") + HEADER)),
    "a header longer than the file": (WEIGHTS, bytes_of(b"\xff" * 64)),
    "absent": (WEIGHTS, lambda folder: (folder / WEIGHTS).unlink()),
    "NaN weights": (WEIGHTS, tensors(classifier_bias=torch.tensor([0.0, torch.nan]))),
    "weights of another network": (WEIGHTS, model("mlp", widths=[4])),
    "weights of a smaller network": (WEIGHTS, model("mlp", widths=[])),
    "a terabyte": (WEIGHTS, model("mlp", widths=[10**9, 10**9])),
    "many layers": (DESCRIPTION, model("mlp", widths=[20] * 100_000)),
    "very deep": (DESCRIPTION, model("resnet", depth=6 * 10**7 + 2)),
    "deeper than its weights": (WEIGHTS, model("resnet", depth=1202)),
    "no description": (DESCRIPTION, lambda folder: (folder / DESCRIPTION).unlink()),
    "no text": (DESCRIPTION, text("")),
    "no JSON": (DESCRIPTION, text("model: mlp")),
    "a list": (DESCRIPTION, text("[]")),
    "null": (DESCRIPTION, text("null")),
    "no keys": (DESCRIPTION, text("{}")),
    "a deep list": (DESCRIPTION, text("[" * 100_000)),
    "deep options": (DESCRIPTION, model("mlp", widths=json.loads("[" * 200 + "]" * 200))),
    "branches of branches": (DESCRIPTION, values(model=nested(150))),
    **{
        f"no {key}": (DESCRIPTION, text(json.dumps({name: VALUES[name] for name in VALUES if name != key})))
        for key in ("model", "num_classes", "input_shape", "class_names", "mean", "std", "task")
    },
    "an unknown model": (DESCRIPTION, model("perceptron")),
    "an unknown option": (DESCRIPTION, model("mlp", depth=3)),
    "an unknown option of an unknown kind": (DESCRIPTION, values(model={"name": "mlp", "options": [1]})),
    "a model that is a list": (DESCRIPTION, values(model=["mlp"])),
    "no classes": (DESCRIPTION, values(num_classes=0)),
    "half a class": (DESCRIPTION, values(num_classes=1.5)),
    "short class names": (DESCRIPTION, values(class_names=["ant"])),
    "class names that are none": (DESCRIPTION, values(class_names=[1, 2])),
    "std 0": (DESCRIPTION, values(std=[[[0.0]]])),
    "std NaN": (DESCRIPTION, values(std=float("nan"))),
    "a mean of text": (DESCRIPTION, values(mean=[["x"]])),
    "a ragged mean": (DESCRIPTION, values(mean=[[1.0], [1.0, 2.0]])),
    "a mean of another shape": (DESCRIPTION, values(mean=[0.0] * 27)),
    "a mean of more inputs": (DESCRIPTION, values(mean=[[[[0.0]]], [[[0.0]]]])),
    "an endless input": (DESCRIPTION, values(input_shape=[1, 10**9, 10**9])),
    "a negative input": (DESCRIPTION, values(input_shape=[1, -28, -28])),
    "an offset of other classes": (DESCRIPTION, values(logit_offset=[0.0, 1.0, 2.0])),
    "an infinite offset": (DESCRIPTION, values(logit_offset=[0.0, float("inf")])),
    "a task that is text": (DESCRIPTION, values(task="mnist")),
}
USED_BY_DATA = {
    "an unknown task": values(task={"name": "m\u001b[2Jnist"}),
    "an unknown option of the task": values(task={"name": "mnist", "sides": 3}),
}


def distill(command: str, *more: str) -> tuple[int, str, float]:
    """Exit code, what went to stderr, and how many seconds it took."""
    own = {"predict": ["input.npy"], "evaluate": [], "export": ["exported"]}[command]
    began = time.monotonic()
    result = CliRunner().invoke(main, [command, "model", *own, *more])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr, time.monotonic() - began


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_model_is_one_line_that_names_its_file(folder: Path, kind: str, command: str) -> None:
    file, damage = DAMAGED[kind]
    damage(folder)
    code, said, seconds = distill(command)
    wrong_argument = kind in ("absent", "no description")
    assert (code, said.count("\n")) == (2 if wrong_argument else 1, 1), said
    assert said.startswith("error: ")
    assert file in said
    assert len(said) < 1000
    assert seconds < SECONDS
    assert not Path("ran").exists()
    assert not Path("exported").exists()


MEASURED = """\
import sys
from raydistill.cli import main
try:
    main(sys.argv[1:])
finally:
    status = open("/proc/self/status").read()
    print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def peak_of(*words: str) -> tuple[int, int]:
    """Exit code of a command in a process of its own, and the most bytes of memory that it had."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=False
    )
    return ended.returncode, 1024 * int(ended.stdout.split()[-1])


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")


@needs_proc
@pytest.mark.parametrize("kind", ["a header of terabytes", "a terabyte"])
def test_a_damaged_model_is_refused_in_less_than_a_gigabyte(folder: Path, kind: str) -> None:
    DAMAGED[kind][1](folder)
    code, peak = peak_of("predict", "model", "input.npy")
    assert code == 1
    assert peak < 1e9


@needs_proc
def test_a_plan_of_a_megabyte_is_refused_in_less_than_a_gigabyte(folder: Path) -> None:
    Path("plan.yaml").write_text(f"name: [{'1, ' * 330_000}]\n")
    code, peak = peak_of("run", "plan.yaml", "--dry-run")
    assert code == 2
    assert peak < 0.2e9


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("kind", USED_BY_DATA)
def test_a_damaged_task_is_one_line_too(folder: Path, kind: str, command: str) -> None:
    USED_BY_DATA[kind](folder)
    code, said, _ = distill(command)
    assert (code, said.count("\n"), DESCRIPTION in said) == (1, 1, True), said
    assert "\x1b" not in said


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "[" * 100_000,
        '{"kind": "evaluate"}',
        '{"kind": "evaluate", "config": []}',
        '{"kind": "evaluate", "config": {"models": []}}',
        '{"kind": "evaluate", "config": {"models": [1]}}',
        '{"kind": "evaluate", "config": {"models": [], "weights": 1, "rule": "none"}}',
        '{"kind": "evaluate", "config": {"models": [], "committee": {"specialists": []}}}',
    ],
    ids=range(8),
)
def test_a_damaged_config_of_an_ensemble_is_one_line(folder: Path, content: str, command: str) -> None:
    (folder / "config.json").write_text(content)
    code, said, _ = distill(command)
    assert (code, said.count("\n"), "config.json" in said) == (1, 1, True), said


def test_the_sound_model_is_used(folder: Path) -> None:
    for command in ("predict", "export"):
        assert distill(command)[0] == 0


def test_more_outputs_than_the_task_has_names_are_fine_when_the_model_says_so(folder: Path) -> None:
    values(class_names=["ant"], model={**VALUES["model"], "num_classes": 2})(folder)
    assert distill("predict")[0] == 0


def test_a_terminal_obeys_no_class_name(folder: Path) -> None:
    values(class_names=["ant\x1b[2J", "bee\nfly"])(folder)
    result = CliRunner().invoke(main, ["predict", "model", "input.npy"])
    assert "\x1b" not in result.output
    assert len(result.output.splitlines()) == 1
    assert "ant\\x1b[2J" in result.output
    assert distill("export")[0] == 0
    assert "\x1b" not in Path("exported/README.md").read_text()


@pytest.mark.parametrize("top", ["-1", "0", "x"])
def test_no_classes_to_print_is_a_wrong_argument(folder: Path, top: str) -> None:
    code, said, _ = distill("predict", "--top", top)
    assert (code, "--top" in said) == (2, True)


@pytest.mark.parametrize("count", [0, 5, 60, 127, 128, 500])
def test_a_truncated_array_is_named(folder: Path, count: int) -> None:
    whole = Path("input.npy").read_bytes()
    Path("input.npy").write_bytes(whole[:count])
    code, said, _ = distill("predict")
    assert code == 1
    assert said.splitlines()[0].startswith("error: `input.npy` is no array of numbers")
    assert len(said.splitlines()) == 2  # and how many inputs were left out


def test_a_header_of_an_array_promises_no_memory(folder: Path) -> None:
    whole = Path("input.npy").read_bytes()
    Path("input.npy").write_bytes(whole.replace(b"(1, 28, 28), }        ", b"(999999999, 28, 28), }", 1))
    code, said, _ = distill("predict")
    assert (code, "is no array of numbers" in said) == (1, True)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", "<f2"])
def test_the_order_of_bytes_in_an_array_does_not_matter(tmp_path: Path, dtype: str) -> None:
    numbers = np.arange(784).reshape(1, 28, 28)
    np.save(tmp_path / "a.npy", numbers.astype(dtype))
    (raw,) = read_inputs([tmp_path / "a.npy"], Form(Mnist(), (1, 28, 28)))
    np.testing.assert_array_equal(raw.raw.numpy()[0], numbers)


@pytest.mark.parametrize("dtype", ["c8", "U3", "S2", "M8[s]", "f4,i4", "V4"])
def test_an_array_of_other_things_than_numbers_is_named(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 28, 28), dtype))
    (raw,) = read_inputs([tmp_path / "a.npy"], Form(Mnist(), (1, 28, 28)))
    assert "is no array of numbers" in raw.errors[0]
