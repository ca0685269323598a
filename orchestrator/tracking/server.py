"""What an MLflow server answers to a first plain question.

It is asked without MLflow: importing that takes more than a second, and its errors hide the cause behind a page about
retries.
"""

import base64
import http.client
import os
import re
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

from raydistill.errors import DistillError
from raydistill.masking import mask, split_login

ANSWER_SECONDS = 5.0
SCHEMES = ("http://", "https://")
EXPERIMENTS = "/api/2.0/mlflow/experiments/search?max_results=1"
HINTS = {
    401: "write its user and password into the URI, or into MLFLOW_TRACKING_USERNAME and _PASSWORD",
    403: "start it with `--allowed-hosts`, or write its IP",
}
# Ways to log in that MLflow knows and a plain question does not: what is refused to us may be granted to it.
OTHER_LOGINS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")


class ServerProblem(DistillError):  # noqa: N818 - what is wrong with somebody else's server
    """Why a server cannot be used; `way_out` says what to do."""

    def __init__(self, message: str, way_out: str) -> None:
        super().__init__(message)
        self.way_out = way_out


def ask_version(uri: str) -> str:
    """The version of the MLflow server at a URI, as it says itself; `ServerProblem` when it does not."""
    return _ask(uri, "/version")


def _ask(uri: str, path: str) -> str:
    shown = mask(uri)
    try:
        url, headers = split_login(uri.rstrip("/") + path)
        request = urllib.request.Request(url, headers=headers or _login())
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            text: str = answer.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        error.close()
        raise ServerProblem(
            f"`{shown}` answers with error {error.code}", HINTS.get(error.code, "is this an MLflow server?")
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServerProblem(
            f"nobody answers at `{shown}` ({reason})",
            "start `mlflow server`; runs meanwhile wait for `distill sync`",
        ) from None
    return text


def problem_of(uri: str) -> str | None:
    """Why nothing can be sent to a server, in one line; None for one that answers, and for stores that are none.

    At most `ANSWER_SECONDS` for the answer; looking up an unknown host takes as long as the system's resolver does.
    """
    if not uri.startswith(SCHEMES):
        return None
    try:
        _ask(uri, EXPERIMENTS)  # which every service that speaks MLflow has, unlike a version
    except ServerProblem as problem:
        is_login = re.search(r"error 40[13]$", problem.message) is not None
        return None if is_login and _has_other_login() else f"{problem.message}; {problem.way_out}"
    return None


def version_conflict(uri: str) -> str | None:
    """What to tell the user when a server is of another major version than ours; None as far as nobody knows.

    A database tells of its version by itself, when it is opened.
    """
    if not uri.startswith(SCHEMES):
        return None
    try:
        theirs, ours = ask_version(uri), version("mlflow")
    except ServerProblem:
        return None
    if not re.fullmatch(r"\d+(\.\w+)+", theirs) or major(theirs) == major(ours):
        return None
    return (
        f"`{mask(uri)}` runs MLflow {theirs}, and here is {ours}: it may refuse what is sent; start the server"
        f" from an environment with `mlflow=={major(ours)}.*`, then `distill sync` sends the rest"
    )


def major(number: str) -> str:
    """The part of a version that must agree."""
    return number.partition(".")[0]


def _login() -> dict[str, str]:
    """The header for the login in the environment, as MLflow makes it."""
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        words = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {words}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _has_other_login() -> bool:
    files = (Path.home() / ".mlflow" / "credentials", Path.home() / ".netrc")
    return any(os.environ.get(name) for name in OTHER_LOGINS) or any(file.exists() for file in files)
