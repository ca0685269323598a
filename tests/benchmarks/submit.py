"""How long a person waits between `distill submit` and the job's first line, and who takes the time.

python tests/benchmarks/submit.py --address http://127.0.0.1:8265 [--plan configs/mnist_quickstart.yaml]
The job is a dry run of the plan: its first line needs no training. The first round uploads and unpacks, the others
find the package on the Ray cluster. `echo` is a job of one word and no files, sent
by Ray's own client: the least that Ray takes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from raydistill.execution.submit.client import JobsClient
from raydistill.execution.submit.command import JobCommand, read_environment
from raydistill.execution.submit.package import collect, plan_name, write_zip
from raydistill.execution.submit.sending import Submission, new_id, send
from raydistill.plan.load import load_plan

REPEATS = 4
MARK = "Running entrypoint for job"
POLL_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address")
    parser.add_argument("--plan", type=Path, default=Path("configs/mnist_quickstart.yaml"))
    arguments = parser.parse_args()
    rounds = [timed_submission(arguments.address, arguments.plan) for _ in range(REPEATS)]
    print(f"{'seconds':<44}{'first':>8}{'later':>8}")
    for part in rounds[0]:
        later = statistics.median(one[part] for one in rounds[1:])
        print(f"{part:<44}{rounds[0][part]:>8.2f}{later:>8.2f}")
    ours = [sum(seconds for part, seconds in one.items() if part.startswith("ours")) for one in rounds]
    rays = [sum(seconds for part, seconds in one.items() if part.startswith("Ray")) for one in rounds]
    print(f"{'ours in all':<44}{ours[0]:>8.2f}{statistics.median(ours[1:]):>8.2f}")
    print(f"{'Ray in all':<44}{rays[0]:>8.2f}{statistics.median(rays[1:]):>8.2f}")
    echo = [timed_echo(arguments.address) for _ in range(REPEATS)]
    print(f"{'Ray alone: echo':<44}{echo[0]:>8.2f}{statistics.median(echo[1:]):>8.2f}")


def timed_submission(address: str | None, plan_file: Path) -> dict[str, float]:
    """Seconds by part, in the order in which they pass."""
    clock = Clock()
    plan = load_plan(plan_file)
    clock.note("ours: read and check the plan")
    package = collect(Path.cwd(), plan_file, (), ())
    clock.note("ours: choose the files")
    client = JobsClient(address)
    clock.note("Ray: import, connect")
    with tempfile.TemporaryDirectory() as root:
        write_zip(package, Path(root) / "package.zip")
        clock.note("ours: pack")
        command = JobCommand(root, plan_name(Path.cwd(), plan_file), more=("--dry-run",))
        job_id = send(
            Submission(new_id(plan.name), command, package, plan.name, read_environment(())), client
        )
        clock.note("Ray: upload, start the job (and pack again)")
        wait_for(lambda: MARK in client.logs(job_id))
        clock.note("Ray: until our command begins")
        wait_for(lambda: has_own_line(client.logs(job_id)))
        clock.note("ours: until its first line")
        wait_for(lambda: client.job(job_id).has_ended)
    return clock.parts


def timed_echo(address: str | None) -> float:
    """Seconds from a bare submission to its line."""
    client = JobsClient(address)
    started = time.monotonic()
    job_id = client.submit("echo first", new_id("echo"), {}, {})
    wait_for(lambda: has_own_line(client.logs(job_id)))
    return time.monotonic() - started


def has_own_line(log: str) -> bool:
    """Whether the command itself has written something; its first lines may overtake Ray's."""
    return any(
        line.strip() and MARK not in line and "job_manager.py" not in line for line in log.splitlines()
    )


def wait_for(claim: Callable[[], bool]) -> None:
    while not claim():
        time.sleep(POLL_SECONDS)


class Clock:
    """Splits time into named parts."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.last = time.monotonic()

    def note(self, part: str) -> None:
        """What has passed since the last note was this part."""
        now = time.monotonic()
        self.parts[part], self.last = now - self.last, now


if __name__ == "__main__":
    main()
