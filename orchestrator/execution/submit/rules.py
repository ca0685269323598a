"""Which files of the working folder stay at home, and why.

Three kinds of rules. Data, results and weights are large, and nodes read them from a file system that they share;
ignore files say what else is no part of the work; both are in the language of .gitignore, where a later rule wins.
What is hidden, or has a secret's name, is guarded: no ignore file and no pattern that matches a folder around it
brings it back, only an `--include` that names it. A link counts as what it leads to.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

NEVER_SENT = (
    "__pycache__/",
    "*.py[co]",
    "*.egg-info/",
    "node_modules/",
    "/data/",
    "/runs/",
    "mlruns/",
    "mlartifacts/",
    *(f"*.{ending}" for ending in ("db", "db-*", "db3", "sqlite*", "mdb", "duckdb", "lmdb")),
    *(f"*.{ending}" for ending in ("pt", "pt2", "pth", "ckpt", "onnx", "safetensors", "gguf", "bin", "pb")),
    *(f"*.{ending}" for ending in ("h5", "hdf5", "keras", "tflite", "pkl", "pickle", "joblib", "msgpack")),
    *(f"*.{ending}" for ending in ("parquet", "arrow", "feather", "npy", "npz", "tfrecord", "tfrecords")),
    *(f"*.{ending}" for ending in ("tar", "gz", "tgz", "bz2", "xz", "zst", "7z", "zip", "whl", "iso")),
)
# Names in lower case. Keys and stores of passwords, then what tools write down for themselves.
PRIVATE = (
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *(
        f"*.{ending}"
        for ending in ("pem", "key", "p12", "pfx", "p8", "ppk", "jks", "keystore", "kdb", "kdbx")
    ),
    *("*.gpg", "*.asc", "*.age", "*.ovpn", "*.env", "env.*", "*.tfstate", "*.tfstate.*", "*.tfvars"),
    *("*secret*", "*credential*", "*password*", "*passwd*", "*token*", "service[-_]account*", "kaggle.json"),
    *("*htpasswd", "*netrc", "*pgpass", "kubeconfig", "*.kubeconfig", "wallet.dat"),
)
PRIVATE_FOLDERS = ("*secret*", "*credential*", "*password*")
HARMLESS = ("*tokeni[sz]e*", "*token*.py", "env.py", "*.pub")
KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY|PuTTY-User-Key-File")
IGNORE_FILES = (".gitignore", ".rayignore")


@dataclass(frozen=True)
class Reason:
    """Why a file is not sent. `is_told`: a user would not expect that, so a note says it."""

    text: str
    is_told: bool = False
    is_asked_for: bool = False  # by `--exclude`


@dataclass(frozen=True)
class Rule:
    """One line in the language of .gitignore."""

    pattern: Any
    reason: Reason

    def matches(self, name: str) -> bool:
        """Whether it is about this path below the folder; a folder's ends with a slash."""
        return self.pattern.regex.match(name) is not None


class Rules:
    """What stays at home of one folder."""

    def __init__(self, folder: Path, exclude: Sequence[str], include: Sequence[str]) -> None:
        self._folder, self._resolved = folder, folder.resolve()
        self._include = list(include)
        self._included = [
            rule for rule in _rules(include, Reason("")) if rule.pattern.include and not _is_any(rule)
        ]
        ours = [
            rule for line in NEVER_SENT for rule in _rules([line], Reason(f"`{line}` is not sent unasked"))
        ]
        excluded = [
            rule
            for line in exclude
            for rule in _rules([line], Reason(f"`--exclude {line}` leaves it out", is_asked_for=True))
        ]
        brought = list(_rules([f"!{line}" for line in include], Reason("")))
        self._places = {"": [*ours, *_rules_in(folder), *excluded, *brought]}

    def reason(self, name: str) -> Reason | None:
        """Why this file is not sent; None for one that is. A link's reason is that of what it leads to."""
        if reason := self._reason_by_name(name):
            return reason
        target = (self._folder / name).resolve()
        if not target.is_relative_to(self._resolved):
            return Reason("it is a link out of this folder", is_told=True)
        target_name = target.relative_to(self._resolved).as_posix()
        if target_name != name and (reason := self._reason_by_name(target_name)):
            return Reason(f"it is a link to `{target_name}`: {reason.text}", is_told=True)
        if self._names(name) is False and _holds_key(target):
            return Reason("it holds a private key", is_told=True)
        return None

    def is_entered(self, name: str) -> bool:
        """Whether anything below a folder can be sent."""
        brought_back = (line.lstrip("/") for line in self._include)
        return self._reason_by_name(f"{name}/") is None or any(
            line.startswith(f"{name}/") for line in brought_back
        )

    def includes(self, name: str) -> bool:
        """Whether an `--include` is about this file."""
        return any(rule.matches(name) for rule in _rules(self._include, Reason("")))

    def _reason_by_name(self, name: str) -> Reason | None:
        for place in _places_around(name):
            if place not in self._places:
                self._places[place] = list(_rules_in(self._folder / place, place))
            below = name.removeprefix(place)
            found = next((rule for rule in reversed(self._places[place]) if rule.matches(below)), None)
            if found and found.pattern.include:
                return found.reason
        return self._guard(name)

    def _guard(self, name: str) -> Reason | None:
        parts = name.rstrip("/").split("/")
        for index, part in enumerate(parts):
            is_file = index == len(parts) - 1 and not name.endswith("/")
            is_hidden = part.startswith(".")
            if not is_hidden and not _is_private(part.lower(), is_file):
                continue
            if not self._names(name, "".join(f"{part}/" for part in parts[:index])):
                return Reason("it is hidden") if is_hidden else Reason("its name is that of a secret", True)
        return None

    def _names(self, name: str, around: str | None = None) -> bool:
        """Whether an `--include` brings `name` and not all of what is around it."""
        around = f"{PurePosixPath(name).parent}/" if around is None else around
        return any(rule.matches(name) and not (around and rule.matches(around)) for rule in self._included)


def _places_around(name: str) -> Iterator[str]:
    """The folders that a name lies in: nothing for the outermost, then `a/`, `a/b/`."""
    yield ""
    parts = name.rstrip("/").split("/")[:-1]
    for end in range(1, len(parts) + 1):
        yield "/".join(parts[:end]) + "/"


def _rules_in(folder: Path, place: str = "") -> Iterator[Rule]:
    for file in (folder / name for name in IGNORE_FILES):
        if file.is_file():
            for line in file.read_text(errors="replace", encoding="utf-8").splitlines():
                yield from _rules([line], Reason(f"`{line.strip()}` in `{place}{file.name}` leaves it out"))


def _rules(lines: Iterable[str], reason: Reason) -> Iterator[Rule]:
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    for line in lines:
        pattern = GitIgnoreSpecPattern(line)
        if pattern.include is not None:
            yield Rule(pattern, reason)


def _is_any(rule: Rule) -> bool:
    """`*` and its like name nothing."""
    return rule.matches("any") and rule.matches(".other")


def _is_private(name: str, is_file: bool) -> bool:
    patterns = PRIVATE if is_file else PRIVATE_FOLDERS
    return any(fnmatchcase(name, pattern) for pattern in patterns) and not any(
        fnmatchcase(name, pattern) for pattern in HARMLESS
    )


def _holds_key(file: Path) -> bool:
    with file.open("rb") as stream:
        return KEY.match(stream.read(100)) is not None


def is_home(folder: Path) -> bool:
    """Whether a folder is the user's home, or one that homes lie in."""
    return Path.home().resolve().is_relative_to(folder.resolve())
