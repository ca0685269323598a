"""Processes that decode: the same from epoch to epoch, copies of no threaded process, and gone with who reads."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.loaders import Loaders
from raydistill.tasks.splits import View


@pytest.fixture(autouse=True)
def tests_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes that are sent `Numbers`, whatever folder pytest was called in."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


class Numbers:
    """A batch of a request: how many threads there are, the process, and its parent; the number, or an error."""

    def __getitems__(self, number: int) -> torch.Tensor | ValueError:
        if number < 0:
            return ValueError(f"there is no {number}")
        return torch.tensor([torch.get_num_threads(), os.getpid(), os.getppid(), number])


def read(loaders: Loaders, *numbers: int) -> list[list[int]]:
    return [batch.tolist() for batch in loaders.batches(numbers, torch.device("cpu"))]


def test_processes_stay_and_are_no_copies_of_this_one() -> None:
    loaders = Loaders(Numbers(), 2)  # type: ignore[arg-type]
    first, second = read(loaders, *range(6)), read(loaders, *range(5))
    assert [row[3] for row in first] == list(range(6))
    assert [row[3] for row in second] == list(range(5))
    assert len({row[1] for row in first}) == 2
    assert {row[1] for row in first} == {row[1] for row in second}
    assert {row[0] for row in first} == {1}
    assert not {row[2] for row in first} & {os.getpid()}


def test_iterations_side_by_side_do_not_mix() -> None:
    loaders = Loaders(Numbers(), 1)  # type: ignore[arg-type]
    device = torch.device("cpu")
    pairs = zip(loaders.batches(range(4), device), loaders.batches(range(10, 14), device), strict=True)
    assert [(int(one[3]), int(other[3])) for one, other in pairs] == [(n, n + 10) for n in range(4)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_raised_as_it_is_and_the_next_iteration_begins_anew(workers: int) -> None:
    loaders = Loaders(Numbers(), workers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^there is no -1$"):
        read(loaders, 0, -1, 2)
    abandoned = loaders.batches(range(5), torch.device("cpu"))
    next(abandoned)
    abandoned.close()
    assert [row[3] for row in read(loaders, 7, 8)] == [7, 8]


SCRIPT = """
import sys, time, torch
from raydistill.tasks.loaders import Loaders
sys.path.insert(0, {folder!r})
import numbers_of_a_test
print("began", flush=True)
loaders, device = Loaders(numbers_of_a_test.Numbers(), 2), torch.device("cpu")
finished = list(loaders.batches(range(4), device))
begun = loaders.batches(range(4), device)
print(*{{int(batch[1]) for batch in finished}} | {{int(next(begun)[1])}}, flush=True)
time.sleep(60)
"""


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at /proc")
def test_a_script_without_a_guard_runs_once_and_its_processes_end_with_it_when_it_is_killed(
    tmp_path: Path,
) -> None:
    module = Path(__file__).read_text()
    start, end = module.index("class Numbers"), module.index("def read(")
    (tmp_path / "numbers_of_a_test.py").write_text(f"import os\nimport torch\n{module[start:end]}")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path)))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "began\n"
        workers = [int(word) for word in running.stdout.readline().split()]
        were_running = [is_running(worker) for worker in workers]
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert were_running == [True, True]
        deadline = time.monotonic() + 60
        while any(map(is_running, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_splits_of_pictures_share_processes_and_give_what_one_process_gives(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / part).mkdir(parents=True)
        for number in range(3):
            pixels = draw.integers(256, size=(12, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    options: dict[str, Any] = {"image_size": 8, "resize": 8, "validation_fraction": 0}
    with_workers = ImageFolder(folder=tmp_path, workers=2, **options).load()
    without = ImageFolder(folder=tmp_path, workers=0, **options).load()
    assert with_workers.train.loaders is with_workers.test.loaders  # type: ignore[attr-defined]
    order = [torch.tensor([4, 1]), torch.tensor([0, 5, 2])]
    for view in (View(3, 0), View(3, 1), None):
        for name in ("train", "test"):
            ours = getattr(with_workers, name).batches(order, view)
            for batch, expected in zip(ours, getattr(without, name).batches(order, view), strict=True):
                assert torch.equal(batch, expected)
