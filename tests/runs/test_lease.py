import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from raydistill.errors import StoreError
from raydistill.runs import lease
from raydistill.runs.lease import Leases

HERE = Path(__file__).parent
ELSEWHERE = '{"owner": "x", "machine": "another one", "pid": 1, "count": %d}'


class Clock:
    """The watcher's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def looks(watcher: Leases, folder: Path, clock: Clock, seconds: float, step: float = 2.0) -> bool:
    """Whether the watcher gets the folder by looking again and again for `seconds`."""
    until = clock.now + seconds
    while clock.now < until:
        if watcher.acquire(folder):
            return True
        clock.now += step
    return False


def test_a_folder_has_one_owner_until_it_is_released(tmp_path: Path) -> None:
    first, second = Leases(), Leases()
    assert first.acquire(tmp_path / "stage")
    assert not second.acquire(tmp_path / "stage")
    first.release(tmp_path / "stage")
    assert second.acquire(tmp_path / "stage")
    assert not first.acquire(tmp_path / "stage")
    assert second.is_ours(tmp_path / "stage")
    assert not first.is_ours(tmp_path / "stage")
    second.close()
    assert first.acquire(tmp_path / "stage")
    first.close()


def test_a_count_that_moves_keeps_an_owner_elsewhere_alive(tmp_path: Path, clock: Clock) -> None:
    watcher, path = Leases(), tmp_path / "lease-1.json"
    for count in range(20):
        path.write_text(ELSEWHERE % count)
        assert not looks(watcher, tmp_path, clock, 10.0)


def test_an_owner_elsewhere_whose_count_stands_still_is_dead_after_the_watchers_patience(
    tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "lease-1.json").write_text(ELSEWHERE % 7)
    watcher = Leases()
    assert not looks(watcher, tmp_path, clock, lease.PATIENCE)
    assert looks(watcher, tmp_path, clock, 6.0)
    watcher.close()


@pytest.mark.parametrize("skew", [-1e9, 1e9])
def test_the_clocks_of_files_and_machines_do_not_matter(tmp_path: Path, clock: Clock, skew: float) -> None:
    path = tmp_path / "lease-1.json"
    path.write_text(ELSEWHERE % 7)
    os.utime(path, (time.time() + skew, time.time() + skew))
    assert not Leases().acquire(tmp_path)


def test_a_watcher_that_slept_itself_judges_by_what_it_then_sees(tmp_path: Path, clock: Clock) -> None:
    path, watcher = tmp_path / "lease-1.json", Leases()
    path.write_text(ELSEWHERE % 7)
    assert not watcher.acquire(tmp_path)
    clock.now += 1e6
    path.write_text(ELSEWHERE % 8)
    assert not watcher.acquire(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}', "\xff" * 400])
def test_a_torn_lease_is_left_to_patience(tmp_path: Path, clock: Clock, content: str) -> None:
    (tmp_path / "lease-1.json").write_bytes(content.encode("latin-1"))
    watcher = Leases()
    assert not looks(watcher, tmp_path, clock, lease.PATIENCE)
    assert looks(watcher, tmp_path, clock, 6.0)
    watcher.close()


def test_the_lease_of_a_process_that_was_killed_is_free_at_once(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; from raydistill.runs.lease import Leases\n"
        "assert Leases().acquire(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    owner = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert owner.returncode == -9
    watcher = Leases()
    assert watcher.acquire(tmp_path)
    watcher.close()


def test_the_same_process_number_in_another_container_is_not_judged(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "lease-1.json").write_text(f'{{"machine": "elsewhere", "pid": {gone.pid}, "count": 0}}')
    assert not Leases().acquire(tmp_path)


def test_an_owner_that_lost_its_lease_sees_it_and_cannot_disturb_the_new_one(
    tmp_path: Path, clock: Clock
) -> None:
    sleeper, successor = Leases(), Leases()
    assert sleeper.acquire(tmp_path)
    lost = sleeper.held[tmp_path]
    assert not looks(successor, tmp_path, clock, lease.PATIENCE, step=lease.PATIENCE / 2)
    clock.now += lease.PATIENCE
    assert successor.acquire(tmp_path)
    assert not lost.is_ours()
    (file,) = tmp_path.glob("lease-*")
    content = file.read_bytes()
    lost.beat()
    sleeper.release(tmp_path)
    assert file.read_bytes() == content
    assert successor.is_ours(tmp_path)
    assert not Leases().acquire(tmp_path)
    sleeper.close()
    successor.close()


def test_who_comes_late_to_a_number_that_was_used_meanwhile_gets_nothing(tmp_path: Path) -> None:
    late, current = 5, 6  # 4 was the last when the latecomer looked; 5 came, went, and was deleted
    (tmp_path / f"lease-{current}.json").write_text(ELSEWHERE % 0)
    assert lease._create(tmp_path, late) is None
    assert [path.name for path in tmp_path.iterdir()] == [f"lease-{current}.json"]


def test_a_listing_that_misses_the_last_lease_makes_nobody_an_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lease-3.json").touch()
    whole, torn = os.listdir, [["lease-2.json"]]  # made while lease-3 came and a lease before it went
    monkeypatch.setattr(os, "listdir", lambda folder: torn.pop() if torn else whole(folder))
    assert lease._create(tmp_path, 2) is None
    assert [path.name for path in tmp_path.iterdir()] == ["lease-3.json"]


def test_a_folder_is_held_until_its_owner_gives_it_up_or_is_gone(tmp_path: Path) -> None:
    owner = Leases()
    assert not lease.is_held(tmp_path / "nowhere")
    assert not lease.is_held(tmp_path)
    assert owner.acquire(tmp_path)
    assert lease.is_held(tmp_path)
    owner.close()
    assert not lease.is_held(tmp_path)


def test_a_folder_that_is_taken_away_while_somebody_asks_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, owner, made = tmp_path / "stage", Leases(), []

    def make(path: Path) -> Path:
        path.mkdir(exist_ok=True)
        if not made:
            path.rmdir()
        made.append(path)
        return path

    monkeypatch.setattr(lease, "make_folder", make)
    assert [owner.acquire(folder), owner.acquire(folder)] == [False, True]
    owner.close()


def test_a_thread_counts_up_in_a_lease_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    owner = Leases()
    owner.acquire(tmp_path)
    counts: set[bytes] = set()
    deadline = time.monotonic() + 60
    while len(counts) < 4:
        assert time.monotonic() < deadline
        counts.add((tmp_path / "lease-1.json").read_bytes())
    owner.close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot create the folder") as error:
        Leases().acquire(tmp_path / "file" / "stage")
    assert "\n" not in error.value.message


def test_eight_processes_that_fight_and_die_never_own_a_folder_together(tmp_path: Path) -> None:
    fight = subprocess.run(
        [sys.executable, str(HERE / "lease_stress.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert fight.returncode == 0, fight.stdout + fight.stderr
    assert not fight.stdout.startswith("0 died")
