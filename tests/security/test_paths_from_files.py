"""Paths that files name: folders lie inside the storage root, fingerprints are fingerprints, links are not followed."""

import json
from pathlib import Path

import pytest

from raydistill.errors import StoreError
from raydistill.runs.folder import StageFolder
from raydistill.runs.view import open_run

IDENTITY = {"config": {}}
NODE = {
    "name": "a",
    "stage": "a",
    "kind": "train",
    "makes": "model",
    "role": "model",
    "fingerprint": "0" * 12,
    "reads": [],
    "folder": "../../outside",
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody else's folder, and a storage root whose `stages` has a link to it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    (tmp_path / "runs" / "stages").mkdir(parents=True)
    (tmp_path / "runs" / "stages" / "train-0123456789ab").symlink_to(folder)
    return folder


def test_a_stage_folder_that_is_a_link_is_neither_emptied_nor_written_to(
    tmp_path: Path, outside: Path
) -> None:
    folder = StageFolder(tmp_path / "runs" / "stages" / "train-0123456789ab")
    for attack in (folder.forget, folder.unfinish, lambda: folder.create(IDENTITY)):
        with pytest.raises(StoreError, match="leads out of the storage root"):
            attack()
    assert [path.name for path in outside.iterdir()] == ["thesis.txt"]


def test_a_stages_folder_elsewhere_is_refused_too(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "stages").symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of the storage root"):
        StageFolder(tmp_path / "other" / "stages" / "train-0123456789ab").create(IDENTITY)
    assert [path.name for path in outside.iterdir()] == ["thesis.txt"]


def test_a_storage_root_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    StageFolder(tmp_path / "runs" / "stages" / "train-0123456789ab").create(IDENTITY)
    assert (tmp_path / "disk" / "stages" / "train-0123456789ab" / "config.json").exists()


@pytest.mark.parametrize("inner", ["cache", "metrics.jsonl", "log.txt"])
def test_a_link_inside_a_stage_folder_is_removed_and_not_followed(
    tmp_path: Path, outside: Path, inner: str
) -> None:
    folder = StageFolder(tmp_path / "runs" / "stages" / "train-ba9876543210")
    folder.create(IDENTITY)
    (folder.path / inner).symlink_to(outside if inner == "cache" else outside / "thesis.txt")
    if inner != "cache":
        folder.create(IDENTITY)
        assert not (folder.path / inner).is_symlink()
    folder.forget()
    assert list(folder.path.iterdir()) == []
    assert (outside / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    "fingerprint", ["../../**", "*", "", "0123456789a", "0123456789AB", "0123456789abc", 12]
)
def test_a_fingerprint_is_twelve_hexadecimal_digits(tmp_path: Path, fingerprint: str) -> None:
    with pytest.raises(StoreError, match="is no fingerprint"):
        StageFolder.of_fingerprint(fingerprint, tmp_path)


def test_a_graph_that_names_a_folder_outside_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "plans" / "p" / "r"
    run.mkdir(parents=True)
    graph = {"plan": "p", "run_id": "r", "test": "", "nodes": [NODE]}
    (run / "graph.json").write_text(json.dumps(graph))
    (run / "results.json").write_text(json.dumps({"plan": "p", "stages": {}, "status": "done"}))
    with pytest.raises(StoreError, match="outside the storage root"):
        open_run(run, tmp_path / "runs")
