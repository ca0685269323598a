"""What a storage root holds, and who needs what of it: runs of plans, searches, and the stages that they share.

All is read from small files. Links are told of and not followed; a run or a search that cannot be read is told of too.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from raydistill.errors import PlanError, StoreError
from raydistill.runs.files import read_as
from raydistill.runs.folder import CONFIG
from raydistill.runs.mirror import mirror_of, open_storage
from raydistill.runs.remote_stage import refresh_root
from raydistill.runs.run_files import GRAPH, RESULTS, ResultsFile
from raydistill.runs.search_run import SEARCH, TrialRecord
from raydistill.runs.search_view import SEARCHES_FOLDER, SearchView, open_search
from raydistill.runs.view import (
    PLANS_FOLDER,
    STAGES_FOLDER,
    RunView,
    StageView,
    open_run,
    open_stage,
    read_graph,
)

STAGE_NAME = re.compile(r".+-[0-9a-f]{12}")
PART_OF_FINGERPRINT = re.compile(r"[0-9a-f]{4,12}")


@dataclass(frozen=True)
class StoredRun:
    """A run of a plan. `stages` are the names of its stages' folders by what the run calls them; `damage` says why the
    run cannot be read."""

    folder: Path
    plan: str
    run_id: str
    status: str
    started: float
    seconds: float = 0.0
    stages: Mapping[str, str] = field(default_factory=dict)
    damage: str | None = None

    @property
    def key(self) -> str:
        """What names it: `mnist/20261126-120000-1f0c`."""
        return f"{self.plan}/{self.run_id}"


@dataclass(frozen=True)
class StoredSearch:
    """A search. `view` is None where it cannot be read, and `damage` says why."""

    folder: Path
    view: SearchView | None
    damage: str | None = None

    @cached_property
    def trials(self) -> list[TrialRecord]:
        """All that can be read."""
        return self.view.trials() if self.view else []

    @property
    def kept_stages(self) -> set[str]:
        """The names of the folders of the stages that it still needs: those of its best trial and of the front, and
        while it is not done those of all trials, which go on, or are where others begin."""
        best = self.view.about.best if self.view and self.view.status == "done" else None
        wanted = {best.trial, *(trial.id for trial in self.view.front())} if self.view and best else None
        kept = [trial for trial in self.trials if wanted is None or trial.id in wanted]
        return {Path(folder).name for trial in kept for folder in trial.stages.values()}


@dataclass(frozen=True)
class Inventory:
    """All of a storage root, as it was when somebody looked."""

    root: Path
    runs: tuple[StoredRun, ...]
    """Of all plans, the latest first."""
    searches: tuple[StoredSearch, ...]
    stages: Mapping[str, StageView]
    """By the names of their folders."""
    links: tuple[Path, ...]

    @cached_property
    def plans(self) -> dict[str, list[StoredRun]]:
        """The runs of every plan, the latest first."""
        found: dict[str, list[StoredRun]] = {}
        for run in self.runs:
            found.setdefault(run.plan, []).append(run)
        return found

    @cached_property
    def inputs(self) -> dict[str, list[str]]:
        """By a stage: the stages that it was made from; their fingerprints where they are gone."""
        names = {stage.fingerprint: name for name, stage in self.stages.items()}
        return {
            name: [names.get(found, found) for found in dict.fromkeys(_inputs(stage.config))]
            for name, stage in self.stages.items()
        }

    def with_inputs(self, names: Iterable[str]) -> set[str]:
        """These stages, and all that they were made from and that is there."""
        found, left = set[str](), list(names)
        while left:
            if (name := left.pop()) in self.stages and name not in found:
                found.add(name)
                left.extend(self.inputs[name])
        return found

    @cached_property
    def readers(self) -> dict[str, list[str]]:
        """By a stage: the stages that were made from it, the runs that it is part of, and searches that tried it."""
        found: dict[str, list[str]] = {name: [] for name in self.stages}
        users = [(name, self.inputs[name]) for name in self.stages]
        users += [(run.key, [*dict.fromkeys(run.stages.values())]) for run in self.runs]
        for search in self.searches:
            tried = {Path(folder).name for trial in search.trials for folder in trial.stages.values()}
            users.append((search.folder.name, [*tried]))
        for user, used in users:
            for name in used:
                if name in found:
                    found[name].append(user)
        return found

    def plans_of(self, stage: str) -> list[str]:
        """The plans that a stage is part of, those that ran last first, and the searches that tried it."""
        users = set(self.readers[stage])
        plans = dict.fromkeys(run.plan for run in self.runs if run.key in users)
        return [*plans, *(search.folder.name for search in self.searches if search.folder.name in users)]


def read_inventory(runs: Path | str = "runs") -> Inventory:
    """Look through a storage root; `StoreError` when there is none."""
    root = open_storage(runs).absolute()
    if not root.is_dir():
        raise StoreError(f"there is no storage root `{root}`; name it with `--runs`")
    refresh_root(root)
    links: list[Path] = []
    plans, searches, stages = (
        subfolders(root / name, links) for name in (PLANS_FOLDER, SEARCHES_FOLDER, STAGES_FOLDER)
    )
    found = [read_stored_run(folder) for plan in plans for folder in subfolders(plan, links)]
    return Inventory(
        root,
        tuple(sorted(filter(None, found), key=_begun, reverse=True)),
        tuple(filter(None, (read_stored_search(folder, root) for folder in searches))),
        {folder.name: open_stage(folder) for folder in stages if STAGE_NAME.fullmatch(folder.name)},
        tuple(links),
    )


def _begun(run: StoredRun) -> tuple[str, float]:
    """When a run began: its id says the second, also in a copy of the root, and its graph more."""
    return run.run_id[: len("20261126-120000")], run.started


def read_stored_run(folder: Path) -> StoredRun | None:
    """A run by its folder; None when that has no graph, or none yet."""
    try:
        started = (folder / GRAPH).stat().st_mtime
    except OSError:
        return None
    try:
        graph = read_graph(folder)
        results = read_as(ResultsFile, folder / RESULTS) if (folder / RESULTS).exists() else ResultsFile()
    except StoreError as error:
        return StoredRun(folder, folder.parent.name, folder.name, "damaged", started, damage=error.message)
    stages = {node.name: Path(node.folder).name for node in graph.nodes}
    return StoredRun(folder, graph.plan, folder.name, results.status, started, results.seconds, stages)


def read_stored_search(folder: Path, root: Path) -> StoredSearch | None:
    """A search by its folder; None when that has no description, or none yet."""
    if not (folder / SEARCH).exists():
        return None
    try:
        return StoredSearch(folder, open_search(folder, root))
    except StoreError as error:
        return StoredSearch(folder, None, error.message)


def find_stored(name: str, runs: Path | str = "runs") -> RunView | SearchView | StageView:
    """What a person means by `name`: a folder, or below the storage root the name or fingerprint of a stage (its first
    digits will do), the id of a run, a search, or a plan, whose last run is meant; `mnist/student` is the stage of that
    run. `PlanError` when it is nothing, or not one thing alone; `StoreError` when it cannot be read."""
    root, place = Path(runs).absolute(), Path(name)
    if os.sep in name or place.is_dir():
        for folder in (place.absolute(), root / PLANS_FOLDER / name, root / name):
            if (opened := _opened(folder, root)) is not None:
                return opened
    inventory = read_inventory(root)
    if name in inventory.plans:
        return open_run(inventory.plans[name][0].folder, root)
    plan, _, node = name.rpartition("/")
    if plan in inventory.plans and (stage := inventory.plans[plan][0].stages.get(node)) in inventory.stages:
        return inventory.stages[str(stage)]
    known = {
        **{run.run_id: run.folder for run in inventory.runs},
        **{search.folder.name: search.folder for search in inventory.searches},
        **{name: stage.folder.path for name, stage in inventory.stages.items()},
    }
    found = [name] if name in known else [key for key in known if key.startswith(name)]
    if PART_OF_FINGERPRINT.fullmatch(name) and name not in known:
        found += [key for key in inventory.stages if key.rpartition("-")[2].startswith(name)]
    if len(found) == 1 and (opened := _opened(known[found[0]], root)) is not None:
        return opened
    if found:
        raise PlanError(
            f"`{name}` may be {', '.join(f'`{key}`' for key in sorted(found)[:5])}; write more of it"
        )
    near = get_close_matches(name, [*known, *inventory.plans], n=1)
    hint = f"did you mean `{near[0]}`?" if near else "`distill list` shows what there is"
    raise PlanError(f"there is no run, stage or plan `{name}` below `{root}`; {hint}")


def _opened(folder: Path, root: Path) -> RunView | SearchView | StageView | None:
    """What lies in a folder, a run with its own root; None when that is nothing of ours."""
    if (folder / GRAPH).exists():
        return open_run(folder, folder.parents[2])
    if (folder / SEARCH).exists():
        return open_search(folder, root)
    return open_stage(folder) if (folder / CONFIG).is_file() or STAGE_NAME.fullmatch(folder.name) else None


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, wherever they are. Links count as nothing."""
    if (mirror := mirror_of(path)) is not None and path.is_dir():
        return sum(entry.size for entry in mirror.listed(path).values())
    try:
        if not path.is_dir() or path.is_symlink():
            return 0 if path.is_symlink() else path.stat().st_size
        with os.scandir(path) as entries:
            return sum(
                size_of(Path(entry.path))
                if entry.is_dir(follow_symlinks=False)
                else 0
                if entry.is_symlink()
                else entry.stat().st_size
                for entry in entries
            )
    except OSError:  # gone meanwhile, or not for us to see
        return 0


def ended_at(stage: StageView) -> float:
    """When a stage ended, or when unfinished work was begun: Unix time in seconds."""
    if stage.record is not None:
        return stage.record.finished
    try:
        return stage.folder.path.stat().st_mtime
    except OSError:
        return 0.0


def subfolders(place: Path, links: list[Path] | None = None) -> list[Path]:
    """The folders in a folder by their names, none where there is no such folder; `links` gathers what is a link."""
    links = [] if links is None else links
    if place.is_symlink():
        links.append(place)
        return []
    try:
        with os.scandir(place) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
    links += [place / entry.name for entry in found if entry.is_symlink()]
    return [place / entry.name for entry in found if entry.is_dir(follow_symlinks=False)]


def _inputs(config: Any) -> Iterator[str]:
    """The fingerprints that a stage's config names. Not by recursion: a file may be nested as deep as it likes."""
    left = [config]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            if value.keys() == {"input"} and isinstance(value["input"], str):
                yield value["input"]
            left.extend(reversed([*value.values()]))
        elif isinstance(value, list | tuple):
            left.extend(reversed(value))
