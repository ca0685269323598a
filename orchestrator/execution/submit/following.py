"""Watching a job from here: its lines as they come, its end, and stopping it."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from raydistill.errors import DistillError
from raydistill.execution.submit.client import Job, JobsClient

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0  # without an answer; a proxy or a tunnel may come back, a head that died does not
STOP_SECONDS = 45.0  # more than STOP_WAIT gives a job

Writer = Callable[[str], None]


def wait_for_end(client: JobsClient, job_id: str, seconds: float = float("inf")) -> Job:
    """The job once it has ended, or after `seconds` as it is then."""
    deadline = time.monotonic() + seconds
    while not (job := client.job(job_id)).has_ended and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return job


def follow(client: JobsClient, job_id: str, write: Writer) -> Job:
    """Write a job's log as it grows, to its end."""
    return asyncio.run(_Follower(client, job_id, write).to_the_end())


def stop_job(client: JobsClient, job_id: str) -> Job:
    """Ask the job to stop, and wait until it has. `DistillError` when it does not."""
    if not client.stop(job_id):
        return client.job(job_id)
    job = wait_for_end(client, job_id, STOP_SECONDS)
    if job.status == "PENDING":
        raise DistillError(
            f"job `{job_id}` has not begun, and Ray does not stop such jobs: it is stopped once it begins; "
            f"see {client.page(job_id)}"
        )
    if not job.has_ended:
        raise DistillError(
            f"job `{job_id}` has not stopped within {STOP_SECONDS:.0f} s; see {client.page(job_id)}"
        )
    return job


def exit_code(job: Job) -> int:
    """The exit code of a command that waited for the job: the job's own, or 130 if the job was stopped."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return 130
    return job.exit_code if job.exit_code is not None and job.exit_code > 0 else 1


class _Follower:
    """Counts what it has written: a stream that breaks off is opened again, and begins at the beginning."""

    def __init__(self, client: JobsClient, job_id: str, write: Writer) -> None:
        self._client, self._job_id, self._write = client, job_id, write
        self._written = 0

    async def to_the_end(self) -> Job:
        tail = asyncio.create_task(self._tail())
        try:
            # The stream stays open for five seconds after the job's end, so the end is asked for.
            while not (job := await self._job()).has_ended:
                await asyncio.wait([tail], timeout=POLL_SECONDS)
                if tail.done():
                    await asyncio.sleep(POLL_SECONDS)
                    tail = asyncio.create_task(self._tail())
            self._take(await asyncio.to_thread(self._client.logs, self._job_id))
        finally:
            tail.cancel()
        return job

    async def _job(self) -> Job:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await asyncio.to_thread(self._client.job, self._job_id)
            except DistillError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    async def _tail(self) -> None:
        """Write the stream until it ends, for whatever reason: the job's status says what that means."""
        seen = 0
        with suppress(Exception):
            async for text in self._client.tail(self._job_id):
                new = text[max(self._written - seen, 0) :]
                seen += len(text)
                if new:
                    self._written += len(new)
                    self._write(new)

    def _take(self, whole: str) -> None:
        """Write what the stream has not brought."""
        self._write(whole[self._written :])
        self._written = max(self._written, len(whole))
