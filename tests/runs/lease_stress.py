"""Processes that fight for one folder, for a test: exits with 1 when two of them owned it at the same time.

The children are forked, so this is a program of its own, without threads or torch.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import psutil

from raydistill.runs.lease import Leases

PROCESSES, ROUNDS, SUICIDES = 8, 30, 40


def main(folder: Path) -> int:
    """Always `PROCESSES` of them: a new one for every one that died."""
    started = PROCESSES
    alive = {start(folder, seed) for seed in range(PROCESSES)}
    violations = 0
    while alive:
        pid, status = os.wait()
        alive.remove(pid)
        if os.WIFSIGNALED(status):
            alive.add(start(folder, started))
            started += 1
        elif os.WEXITSTATUS(status):
            violations += 1
    print(f"{started - PROCESSES} died, {violations} met another owner")  # noqa: T201
    return min(violations, 1)


def start(folder: Path, seed: int) -> int:
    """A child that fights."""
    if pid := os.fork():
        return pid
    try:
        is_alone = owns_alone(folder, random.Random(seed), may_die=seed < SUICIDES)
    except BaseException:
        traceback.print_exc()
        os._exit(2)
    os._exit(0 if is_alone else 1)


def owns_alone(folder: Path, dice: random.Random, *, may_die: bool) -> bool:
    """Own the folder `ROUNDS` times, or die while it is ours. False: another living process owned it too."""
    marker, me = folder / "owner", str(os.getpid())
    for _ in range(ROUNDS):
        leases = Leases()
        while not leases.acquire(folder):
            time.sleep(dice.random() * 0.002)
        if marker.exists() and is_alive(int(marker.read_text())):
            return False
        marker.write_text(me)
        time.sleep(dice.random() * 0.001)
        if marker.read_text() != me or not leases.is_ours(folder):
            return False
        if may_die and dice.random() < 0.15:
            os.kill(os.getpid(), signal.SIGKILL)
        marker.unlink()
        leases.close()
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
