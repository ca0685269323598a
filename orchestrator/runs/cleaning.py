"""What of a storage root nobody needs, and taking it away so that a run which starts meanwhile loses nothing.

A run writes its graph before it looks for results, and a search takes its lease before; whoever finds no record makes
the stage anew, under the stage's lease. So a stage goes in this order, under its lease too: its record is hidden; the
runs and searches that are new are looked through; if one of them wants the stage, the record comes back; if none does,
the folder is renamed away and deleted. Either the run was seen here, or it sees that the stage is gone.
"""

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raydistill.errors import StoreError
from raydistill.runs.fetched_files import FETCHED_FOLDER
from raydistill.runs.files import store_errors
from raydistill.runs.folder import CHECKPOINT, RECORD, StageFolder
from raydistill.runs.inventory import Inventory, StoredRun, ended_at, read_stored_run, size_of, subfolders
from raydistill.runs.lease import Leases, is_held
from raydistill.runs.mirror import bring_all, send
from raydistill.runs.mirror import remove as withdraw
from raydistill.runs.run_files import GRAPH, RESULTS
from raydistill.runs.search_run import SEARCH
from raydistill.runs.search_view import SEARCHES_FOLDER
from raydistill.runs.view import PLANS_FOLDER, STAGES_FOLDER
from raydistill.tasks.packed_files import PACKED_FILE, PACKED_FOLDER, last_used, take_away
from raydistill.tasks.task import data_root

DAY = 86400.0
TEMPORARY = re.compile(r"\..+\.tmp")
PIXELS = re.compile(r"[a-z]+-[0-9a-f]{16}\.(npy|json|bytes)")
OURS = (PLANS_FOLDER, STAGES_FOLDER, SEARCHES_FOLDER, "surveys", "tasks")
NO_PIXELS = frozenset({*OURS, "mlartifacts", FETCHED_FOLDER})

What = Literal[
    "stage", "unfinished stage", "checkpoint", "leftover", "pixels", "packed pictures", "fetched model"
]
OF_NO_STAGE = ("leftover", "pixels", "fetched model")


@dataclass(frozen=True)
class Removal:
    """Something that can go: a file, or a folder with all that is in it. Size in bytes, age in seconds."""

    path: Path
    what: What
    why: str
    size: int
    age: float


@dataclass(frozen=True)
class Cleaning:
    """What can go, and lines about what was left alone."""

    removals: tuple[Removal, ...]
    spared: tuple[str, ...]


def find_removals(inventory: Inventory, *, keep_runs: int = 3, days: float = 7.0) -> Cleaning:
    """Stages that none of the last `keep_runs` runs of any plan, no run that goes on and no search needs, nor what they
    need was made from; checkpoints of finished stages, pixels, packed pictures of this machine and fetched models that
    nobody has touched for so many `days`; and
    whatever was left unfinished more than a day ago. What somebody holds the lease of stays.

    `StoreError` when a run or a search cannot be read, as nobody knows what it needs.
    """
    wanted, spared = wanted_stages(inventory, keep_runs), list[str]()
    searching = [search.folder.name for search in inventory.searches if is_held(search.folder)]
    if searching:
        spared.append(f"all stages, as a search is running: {', '.join(searching)}")
    stages = [] if searching else list(_stages(inventory, wanted, spared, keep_runs))
    checkpoints = [] if searching else list(_checkpoints(inventory, wanted, days))
    spared += [f"`{link}`, which is a link" for link in inventory.links]
    gone = {removal.path for removal in stages}
    others = (
        *_leftovers(inventory.root, gone),
        *_pixels(inventory.root, days),
        *_packed(inventory.root, days),
        *_fetched(inventory.root, days),
    )
    return Cleaning((*stages, *checkpoints, *others), tuple(spared))


def wanted_stages(inventory: Inventory, keep_runs: int) -> set[str]:
    """The names of the folders of the stages that must stay."""
    folders = {folder for search in inventory.searches if search.view for folder in search.view.plan_runs}
    kept = [
        run
        for runs in inventory.plans.values()
        for place, run in enumerate(runs)
        if place < keep_runs
        or run.status == "running"
        or run.folder.relative_to(inventory.root).as_posix() in folders
    ]
    damages = [(run.damage, run.folder) for run in kept]
    damages += [(search.damage, search.folder) for search in inventory.searches]
    for damage, folder in damages:
        if damage is not None:
            raise StoreError(
                f"{damage}; which stages it needs is not known: move `{folder}` away, then clean"
            )
    wanted = {name for run in kept for name in run.stages.values()}
    return inventory.with_inputs(wanted.union(*(search.kept_stages for search in inventory.searches)))


def _stages(inventory: Inventory, wanted: set[str], spared: list[str], keep_runs: int) -> Iterator[Removal]:
    for name, stage in inventory.stages.items():
        folder = stage.folder.path
        if name in wanted:
            continue
        if is_held(folder):
            spared.append(f"`{name}`, which is in use")
        elif stage.status != "stopped":
            last = "last run" if keep_runs == 1 else f"last {keep_runs} runs"
            why = f"not part of the {last} of any plan" if inventory.readers[name] else "part of no run"
            yield _removal(folder, "stage", why, ended_at(stage))
        elif (touched := _last_touched(folder)) < time.time() - DAY:
            yield _removal(folder, "unfinished stage", "begun and left, part of no run that is kept", touched)


def _checkpoints(inventory: Inventory, wanted: set[str], days: float) -> Iterator[Removal]:
    for name in sorted(wanted):
        stage = inventory.stages[name]
        folder, record = stage.folder.path / CHECKPOINT, stage.record
        if record is None or record.status != "done" or record.untested or not folder.is_dir():
            continue
        if (touched := _last_touched(folder)) < time.time() - days * DAY and not is_held(stage.folder.path):
            yield _removal(folder, "checkpoint", "its stage is finished", touched)


def _leftovers(root: Path, gone: set[Path]) -> Iterator[Removal]:
    """Temporary siblings of files, and runs and searches that never began."""
    limit = time.time() - DAY
    for place in (place for place in subfolders(root) if place.name in OURS):
        for name, folders, files in os.walk(place):
            here = Path(name)
            for path in (here / name for name in (*folders, *files) if TEMPORARY.fullmatch(name)):
                if (touched := _touched(path)) < limit:
                    yield _removal(path, "leftover", "half written", touched)
            folders[:] = [
                name for name in folders if not TEMPORARY.fullmatch(name) and here / name not in gone
            ]
    runs = [folder for plan in subfolders(root / PLANS_FOLDER) for folder in subfolders(plan)]
    never = [(folder, "a run") for folder in runs if not (folder / GRAPH).exists()]
    searches = subfolders(root / SEARCHES_FOLDER)
    never += [(folder, "a search") for folder in searches if not (folder / SEARCH).exists()]
    for folder, what in never:
        if (touched := _last_touched(folder)) < limit and not is_held(folder):
            yield _removal(folder, "leftover", f"{what} that never began", touched)


def _pixels(root: Path, days: float) -> Iterator[Removal]:
    """Files that `pixel_cache.py` and `parquet_pictures.py` laid out below the root, and nobody has read for long."""
    for place in subfolders(root):
        if place.name in NO_PIXELS:
            continue
        for folder, _, files in os.walk(place):
            for path in (Path(folder) / name for name in files if PIXELS.fullmatch(name)):
                if (touched := _touched(path, or_read=True)) < time.time() - days * DAY:
                    yield _removal(path, "pixels", "laid out anew when a task needs them", touched)


def _packed(root: Path, days: float) -> Iterator[Removal]:
    """Packed pictures below this machine's data root, or below the storage root, that nobody has used for long."""
    places = [
        data_root() / PACKED_FOLDER,
        *(place for place in subfolders(root) if place.name not in NO_PIXELS),
    ]
    for place in dict.fromkeys(path.absolute() for path in places):
        for folder, _, files in os.walk(place):
            for path in (Path(folder) / name for name in sorted(files) if PACKED_FILE.fullmatch(name)):
                if path.is_file() and (used := last_used(path)) < time.time() - days * DAY:
                    yield _removal(path, "packed pictures", "packed anew when a task needs them", used)


def _fetched(root: Path, days: float) -> Iterator[Removal]:
    """Models that were fetched for plans which no stage is made from now: stages have copies."""
    for folder in subfolders(root / FETCHED_FOLDER):
        used = max([_touched(folder), *(_touched(path, or_read=True) for path in folder.iterdir())])
        if used < time.time() - days * DAY:
            yield _removal(folder, "fetched model", "fetched anew when a plan names it", used)


def _removal(path: Path, what: What, why: str, touched: float) -> Removal:
    return Removal(path, what, why, size_of(path), max(time.time() - touched, 0.0))


def _touched(path: Path, *, or_read: bool = False) -> float:
    """When a file was written, or if that is later, read; now where it is gone."""
    try:
        status = path.lstat()
    except OSError:
        return time.time()
    return max(status.st_mtime, status.st_atime) if or_read else status.st_mtime


def _last_touched(folder: Path) -> float:
    """When anything in a folder was last written."""
    times = [_touched(folder)]
    for place, folders, files in os.walk(folder):
        times += [_touched(Path(place) / name) for name in (*folders, *files)]
    return max(times)


def remove(
    inventory: Inventory, removals: tuple[Removal, ...], told: Callable[[Removal, str | None], None]
) -> None:
    """Take away what `find_removals` found; `told` hears of each one, and why it stayed if it did."""
    newcomers, leases = _Newcomers(inventory), Leases()
    try:
        for removal in removals:
            try:
                _refuse_outside(_root_of(removal, inventory.root), removal.path)
                told(removal, _remove(removal, newcomers, leases))
            except StoreError as error:
                told(removal, error.message)
    finally:
        leases.close()


def _remove(removal: Removal, newcomers: "_Newcomers", leases: Leases) -> str | None:
    """Why it stayed; None when it is gone."""
    if removal.what in OF_NO_STAGE:
        _delete(removal.path)
        return None
    if removal.what == "packed pictures":
        with store_errors(removal.path, "delete"):
            return None if take_away(removal.path) else "somebody uses it now"
    stage = removal.path.parent if removal.what == "checkpoint" else removal.path
    if not stage.is_dir() or not leases.acquire(stage):
        return "somebody uses it now"
    try:
        if removal.what == "checkpoint":
            return _remove_checkpoint(removal.path)
        return _remove_stage(removal, newcomers)
    finally:
        leases.release(stage)
        if not stage.exists():
            withdraw(stage)  # the lease itself, which behind a URL is an object beside the stage's


def _remove_checkpoint(folder: Path) -> str | None:
    record = StageFolder(folder.parent).record()
    if record is None or record.status != "done" or record.untested:
        return "its stage is trained again"
    _delete(folder)
    return None


def _remove_stage(removal: Removal, newcomers: "_Newcomers") -> str | None:
    record = removal.path / RECORD
    if removal.what == "unfinished stage" and record.exists():
        return "it was finished meanwhile"
    hidden = record.with_name(
        _temporary(RECORD)
    )  # a name that `StageFolder.unfinish` sweeps, should we die here
    with store_errors(record, "hide"), suppress(FileNotFoundError):
        record.rename(hidden)
    withdraw(record)
    if newcomers.want(removal.path.name):
        with store_errors(record), suppress(FileNotFoundError):
            hidden.rename(record)
        send(record)
        return "a run that began meanwhile needs it"
    _delete(removal.path)
    return None


def _delete(path: Path) -> None:
    """Rename, then delete: nobody meets half of it."""
    withdraw(path)
    away = path.with_name(_temporary(path.name.lstrip(".")))
    with store_errors(path, "delete"):
        path.rename(away)
        if away.is_dir():
            shutil.rmtree(away)
        else:
            away.unlink()


def _temporary(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.tmp"


def _root_of(removal: Removal, root: Path) -> Path:
    """What a removal lies below: the storage root, or where this machine keeps data."""
    data = data_root().absolute()
    return data if removal.path.is_relative_to(data / PACKED_FOLDER) else root


def _refuse_outside(root: Path, path: Path) -> None:
    """What is deleted lies below the root by its real name, and is no link."""
    if path.is_symlink() or path.parent.resolve() != root.resolve() / path.parent.relative_to(root):
        raise StoreError(
            f"`{path}` leads out of the storage root: it, or a folder around it, is a link; it stays"
        )


class _Newcomers:
    """The runs and searches that have begun since somebody looked, and what they want."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._known = {run.folder for run in inventory.runs}
        self._wanted: set[str] = set()

    def want(self, stage: str) -> bool:
        """Whether one of them needs a stage; of a search that runs nobody knows, so it needs all."""
        root = self._inventory.root
        bring_all(root / PLANS_FOLDER, (GRAPH, RESULTS))
        for plan in subfolders(root / PLANS_FOLDER):
            for folder in subfolders(plan):
                if folder not in self._known and (run := read_stored_run(folder)) is not None:
                    self._add(run)
        return stage in self._wanted or any(is_held(folder) for folder in subfolders(root / SEARCHES_FOLDER))

    def _add(self, run: StoredRun) -> None:
        if run.damage is not None:
            raise StoreError(run.damage)
        self._known.add(run.folder)
        self._wanted |= self._inventory.with_inputs(run.stages.values())
