"""How long something takes when it is done again and again, and how much memory its process takes: without torch.

Run as a module, it does so with an ONNX file: what such a process takes is what a device takes that has the runtime
and nothing else.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

STATUS = Path("/proc/self/status")
WARM_UP = 5
FEWEST, MOST = 20, 500  # runs; between them as many as `SECONDS` allow
SECONDS = 1.0


def time_runs(run: Callable[[], object], seconds: float = SECONDS) -> dict[str, float]:
    """Seconds that half (`p50`) and 95 % (`p95`) of the `runs` stay below, after a few that are not counted."""
    for _ in range(WARM_UP):
        run()
    times: list[float] = []
    while len(times) < FEWEST or (len(times) < MOST and sum(times) < seconds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    middle, late = np.percentile(times, [50, 95])
    return {"p50": float(middle), "p95": float(late), "runs": len(times)}


def peak_bytes() -> int | None:
    """The resident memory of this process at its peak, where the system tells."""
    with suppress(OSError):
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


def time_onnx(
    file: str, shape: list[int], dtype: str, settings: list[list[int]], seconds: float
) -> dict[str, Any]:
    """`runs`, a result for each setting of [batch, threads], and `peak_bytes` of the process."""
    import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]

    results = []
    for batch, threads in settings:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        inputs = {name: np.zeros((batch, *shape), dtype=dtype)}
        results.append(time_runs(partial(session.run, ["probabilities"], inputs), seconds))
    return {"runs": results, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(time_onnx(**json.load(sys.stdin))))
