"""Where an attempt at a stage runs. Its processes write that down as soon as they begin: only they know, and whoever
follows the run reads it from the folder, as all else."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raydistill.errors import StoreError
from raydistill.runs.files import json_text, read_json, replaced_file
from raydistill.runs.mirror import send
from raydistill.runs.stage_files import PLACE

Phase = Literal["waiting for room", "starting", "running", "node lost"]


@dataclass(frozen=True)
class Placement:
    """What `running` stands for, and the names of the nodes, each once, as far as they are known."""

    phase: Phase = "starting"
    nodes: tuple[str, ...] = ()


STARTING = Placement()


def here() -> str:
    """The name of this node."""
    return platform.node() or "this machine"


def write_place(folder: Path, attempt: str, rank: int, node_id: str = "") -> None:
    """Say that this process works on an attempt. Not fsynced: it is of no use after a power cut.

    `node_id` is Ray's, by which it knows whether the node lives; names may be shared by several nodes of a test.
    """
    with replaced_file(folder / PLACE.format(rank)) as temporary:
        temporary.write_text(
            json_text({"attempt": attempt, "node": here(), "node_id": node_id}), encoding="utf-8"
        )
    send(folder / PLACE.format(rank))


def read_places(folder: Path, attempt: str, workers: int) -> list[dict[str, Any]]:
    """`node` and `node_id` of every rank of this attempt that has begun."""
    found = []
    for rank in range(workers):
        path = folder / PLACE.format(rank)
        try:
            place = read_json(path) if path.exists() else {}
        except StoreError:  # removed meanwhile
            continue
        if place.get("attempt") == attempt:
            found.append(place)
    return found


def nodes_of(places: list[dict[str, Any]]) -> tuple[str, ...]:
    """The names of nodes, each once, in the order of the ranks."""
    return tuple(dict.fromkeys(str(place["node"]) for place in places))


def remove_places(folder: Path) -> None:
    """The attempt is over: its record says where it was."""
    for path in folder.glob(PLACE.format("*")):
        path.unlink(missing_ok=True)
