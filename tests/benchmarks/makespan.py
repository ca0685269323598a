"""Do independent specialists fill the machine? 20 of them on 2 cores: time from the first start to the last end,
against half of the sum of their own durations. The goal is at most 1.15.

    python tests/benchmarks/makespan.py [--epochs 6]
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

CORES = 2
PAIRS = [[first, second] for first in range(10) for second in range(first + 1, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    epochs = parser.parse_args().epochs
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.yaml"
        plan.write_text(json.dumps(plan_of(epochs)))
        run = ["distill", "run", str(plan), "--runs", f"{folder}/runs"]
        subprocess.run([*run, "--only", "generalist", "--only", "clusters"], check=True, capture_output=True)
        subprocess.run(run, check=True, capture_output=True)
        files = Path(folder).glob("runs/stages/train_specialists-*/record.json")
        records = [json.loads(file.read_text()) for file in files]
    own = [record["seconds"] for record in records]
    first = min(record["finished"] - record["seconds"] for record in records)
    makespan = max(record["finished"] for record in records) - first
    print(f"{len(own)} specialists of {min(own):.1f} to {max(own):.1f} s, together {sum(own):.1f} s")
    print(f"makespan {makespan:.1f} s: {makespan / (sum(own) / CORES):.3f} of half of that")


def plan_of(epochs: int) -> dict[str, object]:
    """A generalist, and 20 specialists for pairs of digits."""
    training = {"epochs": epochs, "batch_size": 50}
    return {
        "name": "makespan",
        "task": {"name": "mnist"},
        "stages": {
            "generalist": {
                "stage": "train",
                "model": {"name": "mlp", "widths": [800, 800]},
                **training,
                "epochs": 1,
            },
            "clusters": {"stage": "confusion_clusters", "given": PAIRS[:20]},
            "specialists": {
                "stage": "train_specialists",
                "generalist": "generalist",
                "clusters": "clusters",
                **training,
            },
        },
    }


if __name__ == "__main__":
    main()
