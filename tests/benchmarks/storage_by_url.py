"""What a storage root behind a URL costs beside a folder: a whole plan, by turns.

    python tests/benchmarks/storage_by_url.py --plan mnist_quickstart --repeats 3

An object store that speaks as Amazon's does runs on this machine, and takes its share of it. Each run is `distill run
--local` into an empty root, in a process of its own; the least time of each way counts. Then the same plan again from
a machine that has nothing: all is cached, and only small files travel.
"""

import argparse
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", default="mnist_quickstart")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {"folder": [], "URL": [], "URL, again": []}
    with tempfile.TemporaryDirectory() as scratch, object_store() as endpoint:
        for number in range(arguments.repeats):
            place = Path(scratch) / str(number)
            url = f"s3://{new_bucket(endpoint)}/runs"
            times["folder"].append(seconds(arguments.plan, str(place / "runs"), endpoint, place / "one"))
            times["URL"].append(seconds(arguments.plan, url, endpoint, place / "one"))
            times["URL, again"].append(seconds(arguments.plan, url, endpoint, place / "other"))
    for name, found in times.items():
        print(f"{name:12} {min(found):7.1f} s   of {', '.join(f'{value:.1f}' for value in found)}")
    print(f"ratio {min(times['URL']) / min(times['folder']):.3f}")


def seconds(plan: str, root: str, endpoint: str, cache: Path) -> float:
    """Of one run."""
    environment = os.environ | environment_of(endpoint, cache)
    command = ["distill", "run", plan, "--local", "--no-tracking", "--runs", root]
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def environment_of(endpoint: str, cache: Path) -> dict[str, str]:
    """Of a process that uses the object store."""
    return {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "RAYDISTILL_CACHE": str(cache),
    }


@contextmanager
def object_store() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.kill()


def new_bucket(endpoint: str) -> str:
    name = f"bucket-{secrets.token_hex(6)}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"))
    return name


if __name__ == "__main__":
    main()
