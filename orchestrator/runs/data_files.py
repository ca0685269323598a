"""Which files a task's data had when a run began: what changed since can then be said file by file.

`runs/tasks/<task>-<fingerprint>-files.json`, one for what is learned from and one for the test split.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from raydistill.errors import StoreError
from raydistill.plan.fingerprint import fingerprint
from raydistill.runs.files import json_line, make_folder, read_json, replaced_file
from raydistill.tasks.task import Task

MOST = 200_000  # files, about 15 MB; of more a change is told without their names
DIGITS = 16
Listing = Mapping[str, Mapping[str, str]]


def write_listings(root: Path, task: Task, identity: Mapping[str, Any], test: str) -> None:
    """Note the files of a task with this identity and test split, once. Data that is one whole has none."""
    places = {learned_file(root, identity): False, judged_file(root, task.name, test): True}
    if all(place.exists() for place in places):
        return
    listing = task.digests()
    if not listing or sum(map(len, listing.values())) > MOST:
        return
    for place, is_test in places.items():
        make_folder(place.parent)
        with replaced_file(place) as temporary:
            temporary.write_text(json_line(_part(listing, is_test)), encoding="utf-8")


def learned_file(root: Path, identity: Mapping[str, Any]) -> Path:
    """Where the files are listed that are learned from under this identity."""
    return root / "tasks" / f"{identity.get('name')}-{fingerprint(identity)}-files.json"


def judged_file(root: Path, name: str, test: str) -> Path:
    """Where the files of a test split are listed."""
    return root / "tasks" / f"{name}-{fingerprint({'test': test})}-files.json"


class DataFiles:
    """The changes in a task's files since a run over this storage root listed them. Files are looked at on request."""

    def __init__(self, root: Path, task: Task) -> None:
        self.root, self.task = root, task

    def changed_learned(self, identity: Mapping[str, Any]) -> str | None:
        """Changes in the files of training and validation since they had this identity; None if no list is kept."""
        return self._changed(learned_file(self.root, identity), is_test=False)

    def changed_test(self, test: str) -> str | None:
        """Of the test split, since it was this one."""
        return self._changed(judged_file(self.root, self.task.name, test), is_test=True)

    def _changed(self, place: Path, *, is_test: bool) -> str | None:
        try:
            old = read_json(place)
        except StoreError:
            return None
        new = _part(self._listing, is_test)
        texts = (text for split in new for text in _changes(split, old.get(split, {}), new[split]))
        return ", ".join(texts) or None

    @cached_property
    def _listing(self) -> Listing:
        return self.task.digests()


def _part(listing: Listing, is_test: bool) -> dict[str, dict[str, str]]:
    return {
        split: {name: digest[:DIGITS] for name, digest in files.items()}
        for split, files in listing.items()
        if (split == "test") == is_test
    }


def _changes(split: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    changed = [name for name in new if name in old and new[name] != old[name]]
    for names, one, many in (
        (changed, "changed", "changed"),
        ([name for name in new if name not in old], "is new", "are new"),
        ([name for name in old if name not in new], "is gone", "are gone"),
    ):
        if names:
            files = "1 file" if len(names) == 1 else f"{len(names)} files"
            more = "" if len(names) == 1 else ", …"
            yield f"{files} of `{split}` {one if len(names) == 1 else many} (`{names[0]}`{more})"
