"""Pieces of work that several processes make side by side: each takes the next one that is nobody's.

A piece belongs to who holds the lease on its folder (`runs/lease.py`): created by one alone, lost by the dead. So
workers come and go: the piece of one that died is made again by another, and one that comes late finds what is left.
Behind a URL who makes a file of a piece sends it (`runs/mirror.py`), and others find it by `is_there`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from raydistill.errors import StageStopped
from raydistill.runs.context import never
from raydistill.runs.lease import Leases
from raydistill.runs.mirror import glance

STOPPED = "stopped before all of it was made; run the plan again to continue"
LOOK_SECONDS = 0.1  # between looks at the pieces of others, once none is left to take


@dataclass(frozen=True)
class Claim:
    """A piece that is this process's to make, for as long as `is_ours()`: one that slept may have lost it."""

    index: int
    is_ours: Callable[[], bool]


def claimed(
    folder: Path, count: int, is_done: Callable[[int], bool], should_stop: Callable[[], bool] = never
) -> Iterator[Claim]:
    """The pieces, numbered below `count`, that this process makes; ends when all pieces are done, whoever made them.
    `folder` is where the claims are kept. `StageStopped` when it `should_stop` while it waits for others."""
    left = list(range(count))
    with closing(Leases()) as leases:
        while left := [index for index in left if not is_done(index)]:
            took = False
            for index in left:
                place = folder / f"{index:05d}"
                if is_done(index) or not leases.acquire(place):
                    continue
                if not is_done(index):  # it may have been finished between the look and the claim
                    took = True
                    yield Claim(index, lambda place=place: leases.is_ours(place))  # type: ignore[misc]
                leases.release(place)
            if not took:
                if should_stop():
                    raise StageStopped(STOPPED)
                time.sleep(LOOK_SECONDS)


def is_there(file: Path) -> bool:
    """Whether a file of a piece was made, on this machine or on another, from which it is brought."""
    glance(file)
    return file.is_file()
