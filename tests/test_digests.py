"""Digests of files: right after every change, and remembered without reading."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raydistill.tasks import digests
from raydistill.tasks.digests import digest_below, digest_file


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root of the test's own, where every file is worth remembering and none is too young for it."""
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(digests, "WORTH_FILES", 1)
    monkeypatch.setattr(digests, "YOUNG_SECONDS", -60.0)
    digests._remembered.cache_clear()
    return tmp_path / "root"


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    read = digests._read

    def noting(path: Path) -> str:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(digests, "_read", noting)
    return names


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, **contents: bytes) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return list(contents)


def in_a_new_process() -> None:
    digests._remembered.cache_clear()


def test_a_second_look_reads_nothing_in_this_process_or_the_next(tmp_path: Path, readings: list[str]) -> None:
    names = write(tmp_path / "data", a=b"1", b=b"2")
    expected = {"a": sha256(b"1"), "b": sha256(b"2")}
    assert digest_below(tmp_path / "data", names) == expected
    assert sorted(readings) == names
    assert digest_below(tmp_path / "data", names) == expected
    in_a_new_process()
    assert digest_below(tmp_path / "data", names) == expected
    assert sorted(readings) == names


def test_only_what_changed_is_read_again_even_at_the_same_size_and_time(
    tmp_path: Path, readings: list[str]
) -> None:
    names = write(tmp_path / "data", a=b"1", b=b"2")
    digest_below(tmp_path / "data", names)
    status = (tmp_path / "data" / "a").stat()
    write(tmp_path / "data", a=b"3")
    os.utime(tmp_path / "data" / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    readings.clear()
    assert digest_below(tmp_path / "data", names)["a"] == sha256(b"3")
    assert readings == ["a"]


def test_files_that_change_places_are_known_by_their_inode(tmp_path: Path) -> None:
    data = tmp_path / "data"
    names = write(data, a=b"1", b=b"2")
    digest_below(data, names)
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (data / old).rename(data / new)
    assert digest_below(data, names) == {"a": sha256(b"2"), "b": sha256(b"1")}


def test_a_young_file_is_not_trusted(
    tmp_path: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Written again within one tick of the clock, it would have the stamp that it has now.
    monkeypatch.setattr(digests, "YOUNG_SECONDS", 60.0)
    names = write(tmp_path / "data", a=b"1")
    digest_below(tmp_path / "data", names)
    assert digest_below(tmp_path / "data", names) == {"a": sha256(b"1")}
    assert readings == ["a", "a"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {"a": 1}}', b'{"files": {"a": [1, "x"]}}'])
def test_a_damaged_memory_is_none(content: bytes, tmp_path: Path, root: Path) -> None:
    names = write(tmp_path / "data", a=b"1")
    digest_below(tmp_path / "data", names)
    (memory,) = (root / "digests").iterdir()
    memory.write_bytes(content)
    in_a_new_process()
    assert digest_below(tmp_path / "data", names) == {"a": sha256(b"1")}


def test_without_a_place_for_the_memory_the_digests_are_right(tmp_path: Path, root: Path) -> None:
    root.write_text("a file where the folder should be")
    names = write(tmp_path / "data", a=b"1")
    assert digest_below(tmp_path / "data", names) == {"a": sha256(b"1")}


def test_what_another_process_remembered_meanwhile_stays(tmp_path: Path, readings: list[str]) -> None:
    write(tmp_path / "data", a=b"1", b=b"2")
    digest_below(tmp_path / "data", ["a"])
    code = (
        "import sys; from pathlib import Path; from raydistill.tasks import digests;"
        "digests.WORTH_FILES, digests.YOUNG_SECONDS = 1, -60;"
        "digests.digest_below(Path(sys.argv[1]), ['b'])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True)
    write(tmp_path / "data", c=b"3")
    digest_below(tmp_path / "data", ["c"])
    in_a_new_process()
    readings.clear()
    digest_below(tmp_path / "data", ["a", "b", "c"])
    assert readings == []


def test_what_is_gone_is_forgotten(tmp_path: Path, root: Path) -> None:
    write(tmp_path / "data", a=b"1", b=b"2")
    digest_below(tmp_path / "data", ["a", "b"])
    (tmp_path / "data" / "a").unlink()
    write(tmp_path / "data", b=b"3")
    digest_below(tmp_path / "data", ["b"])
    (memory,) = (root / "digests").iterdir()
    assert '"b"' in memory.read_text()
    assert '"a"' not in memory.read_text()


def test_a_packed_file_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"1")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"1"))
    assert digest_file(tmp_path / "packed.gz") == digest_file(tmp_path / "plain") == sha256(b"1")


@pytest.mark.parametrize("damage", [lambda content: content[:-4], lambda content: b"no" + content])
def test_a_damaged_packed_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "packed.gz").write_bytes(damage(gzip.compress(b"1" * 999)))
    with pytest.raises(ValueError, match=r"packed.gz. is damaged"):
        digest_file(tmp_path / "packed.gz")


def test_a_copy_has_the_same_digests_and_a_memory_of_its_own(tmp_path: Path, root: Path) -> None:
    names = write(tmp_path / "here", a=b"1", b=b"2")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert digest_below(tmp_path / "here", names) == digest_below(tmp_path / "there", names)
    assert len(list((root / "digests").iterdir())) == 2
