"""The process that `later` starts: it sends what a command that has ended left."""

import fcntl
import json
import logging
import sys
import threading
from pathlib import Path

from raydistill.tracking.background import push_rest_of
from raydistill.tracking.state import LOCK

MOST_SECONDS = 3600.0  # a store that hangs for longer gets the rest from the next run


def main() -> None:
    """Wait for the lock that the command holds until it has ended, then push as the command would have."""
    request = json.load(sys.stdin)
    folder, give_up = Path(request["folder"]), threading.Event()
    timer = threading.Timer(MOST_SECONDS, give_up.set)
    timer.daemon = True
    timer.start()
    with (folder / LOCK).open("a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        result = push_rest_of(folder, Path(request["root"]), request["uri"], give_up)
    logging.info("%s: %s", result.tracking_uri, result.problem or "all is sent")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
