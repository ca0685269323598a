"""Ray's Jobs API, with our errors. The head is asked who it is before ray is imported: Ray's client waits for ever."""

import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from platform import python_version
from typing import Any, TypeVar
from urllib.parse import urlsplit

from raydistill.errors import DistillError, PlanError
from raydistill.execution.ray_backend.private import PACKAGING_LOGGERS
from raydistill.execution.ray_backend.tokens import TOKEN_HINT, use_token
from raydistill.execution.submit.package import MAX_BYTES, size
from raydistill.masking import mask, split_login
from raydistill.runs.record import summary_of

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS = "RAY_API_SERVER_ADDRESS"
REACH_SECONDS = 10.0
OLDEST_PYTHON, OLDEST_RAY = (3, 11), (2, 60)  # as pyproject.toml has them

Result = TypeVar("Result")


@dataclass(frozen=True)
class Versions:
    """What a machine runs."""

    ray: str
    python: str

    def __str__(self) -> str:
        return f"Ray {self.ray} on Python {self.python or 'of an unknown version'}"


@dataclass(frozen=True)
class Job:
    """A job as Ray tells of it. Times are seconds since 1970."""

    id: str
    status: str
    entrypoint: str
    message: str = ""
    exit_code: int | None = None
    started: float | None = None
    ended: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def seconds(self) -> float | None:
        """How long it has run."""
        return None if self.started is None else (self.ended or time.time()) - self.started


class JobsClient:
    """The Jobs API of one Ray cluster. `address` is for showing: it has no login."""

    def __init__(self, address: str | None = None) -> None:
        """Find the head. `PlanError` when it cannot be used, with the way out."""
        self._url = resolve_address(address)
        self.address = mask(self._url)
        self._token = use_token()
        self.versions = self._ask_versions()
        with self._addressed():
            from ray.job_submission import JobSubmissionClient

            for name in PACKAGING_LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            self._client = self._call(lambda: JobSubmissionClient(self._url))

    def submit(
        self, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> str:
        """Upload what `runtime_env` names and start the job; returns its id."""

        def submit() -> str:
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata=metadata,
                )
            )

        return self._call(submit)

    def machines(self) -> list[dict[str, float]]:
        """What each living node has in all, in Ray's words; nothing from a head that does not tell."""
        answer: Any = self._get("/api/v0/nodes?detail=true&limit=10000").get("data")
        for key in ("result", "result"):
            answer = answer.get(key) if isinstance(answer, dict) else None
        nodes = [node for node in answer or () if isinstance(node, dict) and node.get("state") == "ALIVE"]
        return [node["resources_total"] for node in nodes if node.get("resources_total")]

    def jobs(self) -> list[Job]:
        """Every submitted job that Ray remembers, the newest first."""
        found = [_job(details) for details in self._call(self._client.list_jobs) if details.submission_id]
        return sorted(found, key=lambda job: -(job.started or 0))

    def job(self, job_id: str) -> Job:
        """One job; `PlanError` when there is none with this id."""
        return _job(self._call(lambda: self._client.get_job_info(job_id), job_id))

    def logs(self, job_id: str) -> str:
        """All that the job has written."""
        return str(self._call(lambda: self._client.get_job_logs(job_id), job_id))

    def tail(self, job_id: str) -> Any:
        """An asynchronous iterator over what the job has written and writes."""
        return self._client.tail_job_logs(job_id)

    def stop(self, job_id: str) -> bool:
        """Ask a job to stop; False when it had ended."""
        return bool(self._call(lambda: self._client.stop_job(job_id), job_id))

    def page(self, job_id: str) -> str:
        """The job's page in Ray's dashboard."""
        return f"{self.address}/#/jobs/{job_id}"

    def _call(self, request: Callable[[], Result], job_id: str = "") -> Result:
        """Run a request; an error of Ray's client, which has HTTP errors as text alone, becomes a `DistillError` of one
        line."""
        try:
            return request()
        except Exception as error:
            raise explain(error, self.address, job_id) from error

    def _ask_versions(self) -> Versions:
        ray = self._get("/api/version").get("ray_version")
        if not isinstance(ray, str):
            raise _no_dashboard(self.address)
        metadata = self._get("/api/v0/cluster_metadata").get("data") or {}
        return Versions(ray, str(metadata.get("pythonVersion", "")))

    def _get(self, path: str) -> dict[str, Any]:
        """What the head answers; nothing for a page that it does not have."""
        url, headers = split_login(self._url + path)
        request = urllib.request.Request(url, headers=headers)
        if self._token and not headers:  # as Ray's own client: a login in the address is the header
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=REACH_SECONDS) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}
            text = error.read(2000).decode(errors="replace")
            raise explain_status(error.code, text, self.address) from None
        except (http.client.HTTPException, ValueError):  # it speaks something else, or of something else
            raise _no_dashboard(self.address) from None
        except OSError as error:
            raise _unreachable(self.address, getattr(error, "reason", error)) from None
        return found if isinstance(found, dict) else {}

    @contextmanager
    def _addressed(self) -> Iterator[None]:
        """Ray prefers this variable to the address that it is given."""
        before = os.environ.get(ADDRESS)
        os.environ[ADDRESS] = self._url
        try:
            yield
        finally:
            if before is None:
                del os.environ[ADDRESS]
            else:
                os.environ[ADDRESS] = before


def resolve_address(address: str | None) -> str:
    """The dashboard's address: as given, else as Ray's own variable has it, else this machine's."""
    given = address or os.environ.get(ADDRESS) or DEFAULT_ADDRESS
    parts = urlsplit(given if "://" in given else f"http://{given}")
    try:
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 6379
    except ValueError:
        is_usable = False
    if not is_usable:
        raise PlanError(
            f"`{mask(given)}` is not the dashboard of a Ray cluster; write `--address http://HEAD:8265`, as `ray start"
            " --head` printed it (`distill run` is what takes `HEAD:6379`)"
        )
    return parts.geturl().rstrip("/")


def check_versions(cluster: Versions) -> str | None:
    """A remark when the Ray cluster's versions are others than here; `PlanError` when ours cannot run there."""
    own = Versions(version("ray"), python_version())
    if _numbers(cluster.ray) < OLDEST_RAY or (cluster.python and _numbers(cluster.python) < OLDEST_PYTHON):
        oldest = f"Ray {_dotted(OLDEST_RAY)} and Python {_dotted(OLDEST_PYTHON)}"
        raise PlanError(
            f"the Ray cluster runs {cluster}, and raydistill needs {oldest} or newer: update its nodes"
        )
    if cluster == own or (cluster.ray == own.ray and not cluster.python):
        return None
    return f"the Ray cluster runs {cluster}, this machine {own}: the job runs with the Ray cluster's"


def explain(error: Exception, address: str, job_id: str = "") -> DistillError:
    """One line for what Ray's client raised."""
    if isinstance(error, DistillError):
        return error
    text = mask(str(error))
    if found := re.search(r"status code (\d+): (.*)", text, re.DOTALL):
        return explain_status(int(found[1]), found[2], address, job_id)
    if type(error).__name__ == "AuthenticationError":
        return explain_status(401 if "required" in text else 403, text, address)
    if isinstance(error, OSError):  # among others, all errors of requests
        return _unreachable(address, mask(summary_of(error)))
    return DistillError(f"the Ray cluster at {address} refuses the job: {mask(summary_of(error))}")


def explain_status(status: int, text: str, address: str, job_id: str = "") -> DistillError:
    """One line for an answer that is an error."""
    if status == 401:
        return PlanError(
            f"the Ray cluster at {address} wants a token and this client sent none: {TOKEN_HINT}"
        )
    if status == 403:
        return PlanError(f"the Ray cluster at {address} refuses this client's token: {TOKEN_HINT}")
    if status == 413:
        return PlanError(
            f"what is sent is more than the {size(MAX_BYTES)} that {address} takes; leave files out with"
            " `--exclude PATTERN` or a `.rayignore`"
        )
    if status == 404 and job_id:
        return PlanError(
            f"the Ray cluster at {address} has no job `{job_id}`; `distill jobs list` shows what it has"
        )
    if taken := re.search(r"submission_id (\S+) already exists", text):
        return PlanError(
            f"the Ray cluster at {address} has had a job `{taken[1]}`; choose another `--submission-id`, or leave it"
            " out"
        )
    return DistillError(f"the Ray cluster at {address} answers with error {status}: {_last_line(text)}")


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id or details.job_id,
        status=str(getattr(details.status, "value", details.status)),
        entrypoint=details.entrypoint,
        message=details.message or "",
        exit_code=details.driver_exit_code,
        started=None if details.start_time is None else details.start_time / 1000,
        ended=None if not details.end_time else details.end_time / 1000,
        metadata=dict(details.metadata or {}),
    )


def _unreachable(address: str, reason: object) -> PlanError:
    return PlanError(
        f"no Ray cluster answers at {address} ({reason}); is the head up, with its dashboard reachable from here"
        " (`ray start --head --dashboard-host 0.0.0.0`, or an SSH tunnel to port 8265)?"
    )


def _no_dashboard(address: str) -> PlanError:
    return PlanError(
        f"{address} answers, but not as the dashboard of a Ray cluster; write `--address http://HEAD:8265`, as"
        " `ray start --head` printed it"
    )


def _last_line(text: str) -> str:
    """Where a traceback says what happened."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1][:300] if lines else "no reason given"


def _numbers(dotted: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", dotted)[:2])


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)
