"""Which files of a folder hold which split, by their names: `train-00000-of-00002.parquet`, `data/test/0.tar`."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from raydistill.tasks.picture_files import reason_of

WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
POINTER = b"version https://git-lfs"
SPLITS = ("train", "validation", "test")
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*))\}")

Patterns = str | tuple[str, ...] | None


def shards_by_split(folder: Path, ending: str, given: Mapping[str, Patterns]) -> dict[str, list[Path]]:
    """The files of each split that has any, sorted: those that `given` patterns name, and of the others those whose
    names say it. Where no name says anything, all are training; where validation is there and no test, it is the test.

    `ValueError` names a file that a pattern names and that is not there.
    """
    found = {split: _matches(folder, given.get(split)) for split in SPLITS}
    twice = {
        path for one, other in itertools.combinations(SPLITS, 2) for path in {*found[one]} & {*found[other]}
    }
    if twice:
        raise ValueError(f"`{min(twice)}` is named for more than one split")
    taken = {path for paths in found.values() for path in paths}
    others = [path for path in _below(folder, ending) if path not in taken]
    by_name = {path: _split_of(path.relative_to(folder)) for path in others}
    for split in SPLITS:
        if given.get(split) is None:
            found[split] = [path for path in others if by_name[path] == split]
    if not any(found.values()):
        found["train"] = others
    if not found["test"] and given.get("validation") is None:
        found["test"], found["validation"] = found["validation"], []
    return {split: paths for split, paths in found.items() if paths}


def refuse_pointer(file: Path) -> None:
    """`ValueError` for what Git LFS leaves in place of a file."""
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"`{file}` is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"
            )


def unassigned(folder: Path, ending: str, files: Mapping[str, list[Path]]) -> list[str]:
    """Paths below the folder of the files that are of no split."""
    taken = {path for paths in files.values() for path in paths}
    return [path.relative_to(folder).as_posix() for path in _below(folder, ending) if path not in taken]


def expanded(pattern: str) -> list[str]:
    """The pattern with `{000..009}` and `{a,b}` written out, as a shell would."""
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, last, choices = braces.groups()
    if first is None:
        middles = choices.split(",")
    else:
        middles = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return [
        text
        for middle in middles
        for text in expanded(pattern[: braces.start()] + middle + pattern[braces.end() :])
    ]


def _matches(folder: Path, patterns: Patterns) -> list[Path]:
    paths: set[Path] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns or ():
        for name in expanded(pattern):
            matches = sorted(folder.glob(name)) if re.search(r"[*?\[]", name) else [folder / name]
            if not matches or not all(path.is_file() for path in matches):
                raise ValueError(f"there is no file `{name}` in `{folder}`")
            paths.update(matches)
    return sorted(paths)


def _below(folder: Path, ending: str) -> Iterator[Path]:
    """All files with this ending at any depth, without what is hidden."""
    for path in sorted(folder.rglob(f"*{ending}")):
        if path.is_file() and not any(map(reason_of, path.relative_to(folder).parts)):
            yield path


def _split_of(path: Path) -> str | None:
    """What the file's name says, or else the nearest folder's."""
    for part in reversed(path.parts):
        splits = {WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in WORDS}
        if len(splits) == 1:
            return splits.pop()
    return None
