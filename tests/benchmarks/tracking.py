"""How much tracking slows training: the same work with a mirror beside it and without, in turns, on a sqlite store.

    OMP_NUM_THREADS=1 python tests/benchmarks/tracking.py [--seconds 20]

Workers never talk to MLflow: a thread of the driver sends what they write down. The worst case is measured, training in
the driver's own process, where that thread takes turns with it. Both are charged processor time: the ratio is that of
both together over the training's. On a busy machine it is too high, as the mirror looks every few seconds, however
little was trained between. The goal is 1.02.

A step takes some 4 ms, and four metrics are reported: the means of every 50 steps, as our loop does, or those of every
tenth step, or of every one, which is 1,000 points a second, more than a sqlite store takes in at that price (each costs
it 0.1 ms). Then a run of
short stages, and a search of many trials of a second. Loading MLflow, once per process, is told apart.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.append(str(Path(__file__).parents[1] / "builders"))
from built_runs import BuiltRun, BuiltSearch, finish_stage

from raydistill.runs.folder import METRICS, StageFolder
from raydistill.tracking import Mirror, background
from raydistill.tracking.store import import_mlflow, open_client

STEPS_PER_EPOCH, STEPS_PER_STAGE, STEPS_PER_TRIAL, TRIALS = 100, 1000, 250, 200
NAMES = ("train/loss", "train/accuracy", "train/loss/soft", "learning_rate")

Note = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of wall time per measurement")
    arguments = parser.parse_args()
    began = time.process_time()
    import_mlflow()
    with tempfile.TemporaryDirectory() as folder:
        open_client(f"sqlite:///{folder}/warm.db", Path(folder)).search_experiments()
    print(
        f"loading MLflow and making a database: {time.process_time() - began:.1f} s of processor time, once"
    )
    print(f"{'metrics':<22} {'step, without':>14} {'step, with':>12} {'looks':>6} {'a look':>9} {'ratio':>8}")
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            plain, _, _, _ = measure(case, Path(first), arguments.seconds, is_tracked=False)
            beside, own, spent, looks = measure(case, Path(second), arguments.seconds, is_tracked=True)
        each = spent / max(looks, 1)
        print(
            f"{name:<22} {1000 * plain:>11.2f} ms {1000 * beside:>9.2f} ms {looks:>6} {1000 * each:>6.1f} ms"
            f" {1 + spent / own:>8.4f}"
        )


def measure(
    case: "Callable[[Path], tuple[Path, Note]]", root: Path, seconds: float, *, is_tracked: bool
) -> tuple[float, float, float, int]:
    """Processor seconds of a step, of all steps, of the mirror, and how often that looked."""
    folder, note = case(root)
    if is_tracked:
        background.mirror(folder, root)  # the database, and what is there already
    mirror, looks = Mirror(folder, root), 0
    push = background._push

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal looks
        looks += 1
        return push(*args, **more)

    with ExitStack() as stack:
        stack.enter_context(patch.object(background, "_push", counted))
        if is_tracked:
            mirror.start()
        clock = time.pthread_getcpuclockid(mirror._thread.ident or 0) if is_tracked else None
        step, own = work(note, seconds)
        spent = time.clock_gettime(clock) if clock is not None else 0.0
        seen = looks
        if is_tracked:
            assert mirror.finish(120).problem is None
    return own / step, own, spent, seen


def work(note: Note, seconds: float) -> tuple[int, float]:
    """Train in a way for so long; returns the steps, and the processor seconds of this thread."""
    left, right = torch.rand(300, 300), torch.rand(300, 300)
    began, own, step = time.monotonic(), time.thread_time(), 0
    while time.monotonic() - began < seconds:
        for _ in range(4):
            right = (left @ right).tanh()
        step += 1
        note(step)
    return step, time.thread_time() - own


def one_stage(root: Path, every: int) -> tuple[Path, Note]:
    """A stage that reports every so many steps."""
    run = BuiltRun(root)
    stream = (begin(run, 0) / METRICS).open("a", buffering=1)

    def note(step: int) -> None:
        if step % every == 0:
            stream.write(line(step))

    return run.folder, note


def short_stages(root: Path) -> tuple[Path, Note]:
    """A run in which one stage after another ends."""
    run = BuiltRun(root)
    folder = begin(run, 0)

    def note(step: int) -> None:
        nonlocal folder
        if step % STEPS_PER_EPOCH == 0:
            with (folder / METRICS).open("a") as stream:
                stream.write(line(step))
        if step % STEPS_PER_STAGE == 0:
            finish_stage(StageFolder(folder), metrics={"test/accuracy": 0.5}, finished=time.time())
            run.states[run.nodes[-1].name].status = "done"
            folder = begin(run, len(run.nodes))

    return run.folder, note


def begin(run: BuiltRun, index: int) -> Path:
    """The next stage of a run begins; returns its folder."""
    folder = run.stage(f"s{index}", status="running", config={"epochs": 3})
    run.write("running")
    return folder.path


def search(root: Path) -> tuple[Path, Note]:
    """A search that has many trials behind it, and in which one after another ends."""
    found = BuiltSearch(root, {"student.seed": {"integer": [0, 9999]}}, status="running", started=time.time())
    number = 0

    def add() -> None:
        nonlocal number
        number += 1
        now = time.time()
        times = {"started": now, "finished": now, "seconds": 5.0}
        curve = {epoch: epoch / 20 for epoch in range(20)}
        found.trial({"student.seed": number}, 0.95, number=number, epochs=curve, **times)

    for _ in range(TRIALS):
        add()
    return found.folder, lambda step: add() if step % STEPS_PER_TRIAL == 0 else None


def line(step: int) -> str:
    return json.dumps({"step": step, "time": time.time(), **dict.fromkeys(NAMES, 1 / step)}) + "\n"


CASES: dict[str, Callable[[Path], tuple[Path, Note]]] = {
    "every 50th step": lambda root: one_stage(root, 50),
    "every tenth step": lambda root: one_stage(root, 10),
    "at every step": lambda root: one_stage(root, 1),
    "stages of a few s": short_stages,
    f"search, {TRIALS} trials": search,
}


if __name__ == "__main__":
    main()
