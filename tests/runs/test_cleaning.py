"""What `distill clean` takes away, what it leaves, and what it does to whoever starts meanwhile."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from built_runs import BuiltRun, BuiltSearch, age, begin_stage, fingerprint_of

from raydistill.errors import StoreError
from raydistill.runs import cleaning
from raydistill.runs.cleaning import Cleaning, Removal, find_removals, remove
from raydistill.runs.folder import StageFolder
from raydistill.runs.inventory import read_inventory
from raydistill.runs.lease import Leases

SPACE = {"student.seed": {"integer": [0, 9]}}


def run_of(root: Path, run_id: str, *names: str, plan: str = "p", status: str = "done") -> BuiltRun:
    """A run of stages, each made from the one before."""
    run = BuiltRun(root, plan=plan, run_id=run_id)
    for before, name in zip((None, *names), names, strict=False):
        config = {"model": {"input": fingerprint_of(before)}} if before else {}
        is_new = not list(root.glob(f"stages/*-{fingerprint_of(name)}/record.json"))
        run.stage(name, reads=[before] if before else [], config=config, is_recorded=is_new, errors=4)
    run.write(status)
    return run


def found(root: Path, keep_runs: int = 1, days: float = 7) -> Cleaning:
    return find_removals(read_inventory(root), keep_runs=keep_runs, days=days)


def removed(root: Path, **options: Any) -> list[tuple[str, str | None]]:
    """Clean; returns what was tried, and why it stayed."""
    told: list[tuple[str, str | None]] = []
    inventory = read_inventory(root)
    removals = find_removals(inventory, **{"keep_runs": 1, "days": 7, **options}).removals
    remove(inventory, removals, lambda removal, why: told.append((removal.path.name, why)))
    return told


def stage(name: str) -> str:
    return f"train-{fingerprint_of(name)}"


def stages_left(root: Path) -> set[str]:
    return {path.name for path in (root / "stages").iterdir()}


def test_stages_that_only_older_runs_refer_to_go_and_those_of_the_last_stay(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "middle", "new"), start=1):
        run_of(tmp_path, f"2026010{number}-1", "shared", name)
    run_of(tmp_path, "20250101-1", "other", plan="q")
    assert found(tmp_path, keep_runs=3).removals == ()
    assert {removal.path.name for removal in found(tmp_path, keep_runs=2).removals} == {stage("old")}
    assert dict(removed(tmp_path)) == {stage("old"): None, stage("middle"): None}
    assert stages_left(tmp_path) == {stage("shared"), stage("new"), stage("other")}


def test_what_a_kept_stage_was_made_from_stays_though_no_kept_run_names_it(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "grandparent", "parent")
    begin_stage(tmp_path, "child", config={"teachers": [{"input": fingerprint_of("parent")}]})
    run_of(tmp_path, "20260102-1", "child")
    assert found(tmp_path).removals == ()


def test_a_stage_that_nobody_ever_refers_to_goes(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "kept")
    lonely = BuiltRun(tmp_path).stage("lonely", errors=3)
    (removal,) = found(tmp_path).removals
    assert (removal.path, removal.what, removal.why) == (lonely.path, "stage", "part of no run")
    assert removal.size == sum(path.stat().st_size for path in lonely.path.iterdir())


def test_a_run_that_goes_on_keeps_its_stages_however_old_it_is(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "slow", status="running")
    run_of(tmp_path, "20260102-1", "quick")
    assert found(tmp_path).removals == ()


def test_a_stage_under_a_lease_stays(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "old")
    run_of(tmp_path, "20260102-1", "new")
    held = tmp_path / "stages" / stage("old")
    leases = Leases()
    assert leases.acquire(held)
    try:
        assert found(tmp_path).removals == ()
        assert found(tmp_path).spared == (f"`{stage('old')}`, which is in use",)
        removal = Removal(held, "stage", "", 0, 0.0)  # it was free when somebody looked
        told: list[str | None] = []
        remove(read_inventory(tmp_path), (removal,), lambda _, why: told.append(why))
        assert told == ["somebody uses it now"]
    finally:
        leases.close()
    assert (held / "record.json").exists()
    assert dict(removed(tmp_path)) == {stage("old"): None}


@pytest.mark.parametrize(("status", "kept"), [("done", {"best"}), ("interrupted", {"best", "other"})])
def test_a_search_keeps_its_best_trial_and_until_it_is_done_all(
    tmp_path: Path, status: str, kept: set[str]
) -> None:
    search = BuiltSearch(tmp_path, SPACE, status=status)
    for seed, name in enumerate(("best", "other")):
        BuiltRun(tmp_path).stage(name, errors=3)
        search.trial({"student.seed": seed}, 0.5, stages={"student": f"stages/{stage(name)}"})
    won = {"trial": search.run.trials()[0].id, "number": 1, "values": {}, "metric": 0.5, "metrics": {}}
    search.write(best=won | {"plan_run": "plans/p-best/r1"} if status == "done" else None)
    going = {removal.path.name for removal in found(tmp_path).removals}
    assert going == {stage(name) for name in {"best", "other"} - kept}


def test_the_runs_that_made_what_trials_share_count_as_the_last(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "shared")
    run_of(tmp_path, "20260102-1", "later")
    assert {removal.path.name for removal in found(tmp_path).removals} == {stage("shared")}
    BuiltSearch(tmp_path, SPACE, plan_runs=["plans/p/20260101-1"])
    assert found(tmp_path).removals == ()


def test_while_a_search_runs_no_stage_goes(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "old")
    run_of(tmp_path, "20260102-1", "new")
    inventory = read_inventory(tmp_path)
    removals = find_removals(inventory, keep_runs=1, days=7).removals
    search, leases = BuiltSearch(tmp_path, SPACE), Leases()
    assert leases.acquire(search.folder)
    try:
        assert found(tmp_path).removals == ()
        assert "a search is running: fake-0123456789ab" in found(tmp_path).spared[0]
        told: list[str | None] = []
        remove(inventory, removals, lambda _, why: told.append(why))  # it began since somebody looked
    finally:
        leases.close()
    assert told == ["a run that began meanwhile needs it"]
    assert StageFolder(tmp_path / "stages" / stage("old")).damage() is None


def test_a_run_that_began_since_somebody_looked_keeps_its_stage_whole(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "old")
    run_of(tmp_path, "20260102-1", "new")
    inventory = read_inventory(tmp_path)
    removals = find_removals(inventory, keep_runs=1, days=7).removals
    run_of(tmp_path, "20260103-1", "old", status="running")
    told: list[str | None] = []
    remove(inventory, removals, lambda _, why: told.append(why))
    assert told == ["a run that began meanwhile needs it"]
    old = StageFolder(tmp_path / "stages" / stage("old"))
    assert old.damage() is None
    assert not list(old.path.glob(".*"))


def test_whoever_begins_after_that_look_sees_no_record_and_can_take_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(tmp_path, "20260101-1", "old")
    run_of(tmp_path, "20260102-1", "new")
    folder, seen, leases = tmp_path / "stages" / stage("old"), list[object](), Leases()
    real: Callable[[Path], None] = cleaning._delete

    def delete(path: Path) -> None:
        seen.append(StageFolder(path).record())  # what a run that begins here would find
        seen.append(leases.acquire(path))
        real(path)
        seen.append(leases.acquire(path))  # the folder is its own now

    monkeypatch.setattr(cleaning, "_delete", delete)
    assert dict(removed(tmp_path)) == {stage("old"): None}
    assert seen == [None, False, True]
    assert leases.is_ours(folder)
    leases.close()


def test_checkpoints_of_finished_stages_go_when_they_are_old_and_not_those_of_unfinished_ones(
    tmp_path: Path,
) -> None:
    run = BuiltRun(tmp_path)
    done, begun = run.stage("done", errors=3), run.stage("begun", status="running")
    run.write("interrupted")
    for folder in (done, begun):
        (folder.path / "checkpoint").mkdir()
        (folder.path / "checkpoint" / "state.json").write_text("{}")
    assert found(tmp_path).removals == ()
    for folder in (done, begun):
        age(folder.path / "checkpoint", days=8)
    (removal,) = found(tmp_path).removals
    assert (removal.path, removal.what) == (done.path / "checkpoint", "checkpoint")
    assert found(tmp_path, days=9).removals == ()
    assert removed(tmp_path) == [("checkpoint", None)]
    assert done.damage() is None
    assert (begun.path / "checkpoint" / "state.json").exists()


def test_what_was_begun_and_left_goes_after_a_day(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "kept")
    left = begin_stage(tmp_path, "left").path
    half = tmp_path / "stages" / stage("kept") / ".model.safetensors.0123abcd.tmp"
    half.write_bytes(b"half")
    never = tmp_path / "plans" / "p" / "20260102-1"
    never.mkdir()
    assert found(tmp_path).removals == ()
    for path in (left, half, never):
        age(path, days=2)
    assert {(removal.path, removal.what) for removal in found(tmp_path).removals} == {
        (left, "unfinished stage"),
        (half, "leftover"),
        (never, "leftover"),
    }
    removed(tmp_path)
    assert not any(path.exists() for path in (left, half, never))
    assert StageFolder(tmp_path / "stages" / stage("kept")).damage() is None


def test_pixels_below_the_root_go_when_nobody_read_them_for_long(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "kept")
    pixels = tmp_path / "pixels"
    pixels.mkdir()
    for name in ("train-0123456789abcdef.npy", "pictures-0123456789abcdef.bytes", "mine.npy"):
        (pixels / name).write_bytes(b"pixels")
    assert found(tmp_path).removals == ()
    age(pixels, days=8)
    os.utime(pixels / "pictures-0123456789abcdef.bytes")
    assert [removal.path.name for removal in found(tmp_path).removals] == ["train-0123456789abcdef.npy"]
    removed(tmp_path, days=0)
    assert [path.name for path in pixels.iterdir()] == ["mine.npy"]


@pytest.mark.parametrize("linked", ["stages", "stage", "inside"])
def test_links_are_not_followed(tmp_path: Path, linked: str) -> None:
    root, outside = tmp_path / "runs", tmp_path / "outside"
    run_of(root, "20260101-1", "kept")
    run_of(root, "20251231-1", "old")
    outside.mkdir()
    (outside / "thesis.txt").write_text("years")
    (outside / ".thesis.txt.0123abcd.tmp").write_text("draft")
    age(outside, days=30)
    if linked == "stages":
        (root / "stages").rename(tmp_path / "moved")
        (root / "stages").symlink_to(tmp_path / "moved")
    elif linked == "stage":
        (root / "stages" / "train-0123456789ab").symlink_to(outside)
    else:
        (root / "stages" / stage("old") / "cache").symlink_to(outside)
    told = removed(root)
    assert told == ([] if linked == "stages" else [(stage("old"), None)])
    assert sorted(path.name for path in outside.iterdir()) == [".thesis.txt.0123abcd.tmp", "thesis.txt"]
    assert linked != "stages" or len(list((tmp_path / "moved").iterdir())) == 2


def test_a_stage_that_became_a_link_since_somebody_looked_stays(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run_of(root, "20260101-1", "kept")
    lonely = BuiltRun(root).stage("lonely", errors=3).path
    inventory = read_inventory(root)
    removals = find_removals(inventory, keep_runs=1, days=7).removals
    lonely.rename(tmp_path / "moved")
    lonely.symlink_to(tmp_path / "moved")
    told: list[str] = []
    remove(inventory, removals, lambda _, why: told.append(str(why)))
    assert "leads out of the storage root" in told[0]
    assert (tmp_path / "moved" / "record.json").exists()


@pytest.mark.parametrize("damaged", ["graph.json", "search.json"])
def test_a_file_that_cannot_be_read_stops_it_all_as_nobody_knows_what_it_needs(
    tmp_path: Path, damaged: str
) -> None:
    run = run_of(tmp_path, "20260101-1", "kept")
    search = BuiltSearch(tmp_path, SPACE)
    ((run if damaged == "graph.json" else search).folder / damaged).write_text("{")
    with pytest.raises(StoreError, match=f"{damaged}` is damaged.*move `.*` away, then clean"):
        found(tmp_path)


def packed_file(folder: Path, name: str, days: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_bytes(b"pictures")
    os.utime(file, (time.time() - days * 86400,) * 2)
    return file


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_packed_pictures_of_this_machine_go_when_nobody_used_them_for_long(
    tmp_path: Path, data: Path
) -> None:
    root = tmp_path / "runs"
    run_of(root, "20260101-1", "kept")
    old = packed_file(data / "packed", "image_folder-0123456789abcdef.pixels", days=9)
    left = packed_file(data / "packed", ".image_folder-0123456789abcde0.pixels.partial", days=9)
    new = packed_file(data / "packed", "webdataset-0123456789abcdef.pixels", days=2)
    mine = packed_file(data / "packed", "holiday.pixels", days=99)
    beside = packed_file(root / "scratch", "image_folder-00000000000000ff.pixels", days=9)
    assert {(removal.path, removal.what) for removal in found(root).removals} == {
        (file, "packed pictures") for file in (old, left, beside)
    }
    assert dict(removed(root)) == {file.name: None for file in (old, left, beside)}
    assert [file.exists() for file in (old, left, beside, new, mine)] == [False, False, False, True, True]


READER = """
import sys
from pathlib import Path
from raydistill.tasks import packed_files
packed_files.use(Path(sys.argv[1]))
print("reads", flush=True)
sys.stdin.read()
"""


def test_packed_pictures_that_a_process_reads_stay_until_it_ends(tmp_path: Path, data: Path) -> None:
    root = tmp_path / "runs"
    run_of(root, "20260101-1", "kept")
    file = packed_file(data / "packed", "image_folder-0123456789abcdef.pixels", days=9)
    (removal,) = found(root).removals
    command = [sys.executable, "-c", READER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reads\n"
        told: list[str | None] = []
        remove(read_inventory(root), (removal,), lambda _, why: told.append(why))
        assert told == ["somebody uses it now"]
        assert file.exists()
        assert found(root).removals == (), "it was used just now"
        reader.kill()
    remove(read_inventory(root), (removal,), lambda _, why: told.append(why))
    assert told[1:] == [None]
    assert not file.exists()


def test_a_link_in_the_place_of_packed_pictures_leads_nowhere(tmp_path: Path, data: Path) -> None:
    root = tmp_path / "runs"
    run_of(root, "20260101-1", "kept")
    outside = packed_file(tmp_path / "outside", "image_folder-0123456789abcdef.pixels", days=9)
    data.mkdir()
    (data / "packed").symlink_to(outside.parent)
    why = dict(removed(root))[outside.name]
    assert outside.exists()
    assert why is not None
    assert "is a link" in why


def test_models_that_were_fetched_go_with_time(tmp_path: Path) -> None:
    run_of(tmp_path, "20260101-1", "kept")
    file = tmp_path / "fetched" / ("0" * 64) / "model.pt2"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"program")
    assert found(tmp_path).removals == ()
    age(file.parent, days=8)
    assert [(removal.path, removal.what) for removal in found(tmp_path).removals] == [
        (file.parent, "fetched model")
    ]
    removed(tmp_path)
    assert not file.exists()
