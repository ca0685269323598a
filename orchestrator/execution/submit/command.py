"""The command line that a job runs, and the settings that travel with it."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from raydistill.errors import PlanError
from raydistill.masking import mask
from raydistill.runs.bucket import is_url

# Ray kills a job 3 s after it asked it to stop. Stages get 10 s for their checkpoints, and the tracking store 3 s.
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
TRACKING_URI = "MLFLOW_TRACKING_URI"
PASSED_ON = (TRACKING_URI,)
THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


@dataclass(frozen=True)
class JobCommand:
    """A `distill` command with the options that a plan takes. `plan` is the plan's name in the package.

    A tracking URI with a login travels as a variable: Ray shows a job's command line to everybody who asks.
    """

    root: str
    plan: str | None = None
    command: str = "run"
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    force: tuple[str, ...] = ()
    tracking_uri: str | None = None
    more: tuple[str, ...] = field(default=())

    @property
    def environment(self) -> dict[str, str]:
        """What the job's command line would show, and should not."""
        return {TRACKING_URI: self.tracking_uri} if self.tracking_uri and self._has_login else {}

    @property
    def _has_login(self) -> bool:
        return self.tracking_uri is not None and mask(self.tracking_uri) != self.tracking_uri

    def to_shell(self) -> str:
        """One line for the shell of the head node, with that machine's `python`.

        -P keeps the working folder from hiding our packages; `exec`, so that a signal meets us and no shell.
        """
        words = ["python", "-P", "-m", "raydistill.cli", self.command]
        words += [self.plan] if self.plan else []
        for option, values in (("--set", self.overrides), ("--only", self.only), ("--force", self.force)):
            words += [f"{option}={value}" for value in values]
        words += ["--address=auto", f"--runs={self.root}"]
        if self.tracking_uri and not self._has_login:
            words += [f"--tracking-uri={self.tracking_uri}"]
        return "exec " + shlex.join([*words, *self.more])


def split_tracking_uri(more: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The tracking URI among options that are passed on, and the others."""
    option, others, words = "--tracking-uri", [], iter(more)
    uri = None
    for word in words:
        if word == option:
            uri = next(words, None)
        elif word.startswith(f"{option}="):
            uri = word.partition("=")[2]
        else:
            others.append(word)
    return uri, tuple(others)


def check_root(root: Path | str | None) -> str:
    """The storage root as the nodes will use it; `PlanError` for one inside the job's own folder, which ends with the
    job."""
    if root is not None and is_url(str(root)):
        return str(root)
    if root is None or not PurePosixPath(root).is_absolute():
        given = "" if root is None else f", and `{root}` lies in the job's own folder, which Ray deletes"
        raise PlanError(
            f"a job needs a storage root that every node sees{given}: `--runs /shared/runs`, an absolute path, or s3://BUCKET/PREFIX"
        )
    return str(root)


def read_environment(given: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of a job from `NAME=VALUE`, or `NAME` to pass on one of this process."""
    mine = os.environ if environment is None else environment
    read = {name: mine[name] for name in PASSED_ON if mine.get(name, "").startswith(("http:", "https:"))}
    for item in given:
        name, equals, value = item.partition("=")
        if re.fullmatch(r"[A-Za-z_]\w*", name) is None:
            raise PlanError(
                f"--env {item}: write `NAME=VALUE`, or `NAME` to pass on a variable of this shell"
            )
        if not equals and name not in mine:
            raise PlanError(
                f"--env {name}: this shell has no such variable; export it, or write `{name}=VALUE`"
            )
        read[name] = value if equals else mine[name]
    return STOP_WAIT | read


def check_submission_id(given: str) -> str:
    """An id that is a word in paths and URLs."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", given) is None:
        raise PlanError(f"--submission-id {given!r}: use letters, digits, `.`, `_` and `-`")
    return given


def points_home(uri: str | None) -> bool:
    """Whether a URI names whatever machine reads it: on the head node that is another one than here."""
    return bool(uri) and urlsplit(uri).hostname in THIS_MACHINE
