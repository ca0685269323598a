"""One worker of a gloo group: runs stages, one attempt each, as every rank of a group under Ray Train does.

    python data_parallel_worker.py RANK WORLD RENDEZVOUS_FILE REQUESTS.json

A request may come with `stop_after`, a number of questions after which the main worker asks to stop. The outcomes of
each rank are written beside the requests.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as distributed

from raydistill.execution.request import StageRequest
from raydistill.execution.run_stage import run_stage


def main(rank: int, world: int, rendezvous: str, requests: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    outcomes = []
    for written in json.loads(requests.read_text()):
        questions = iter(range(written.pop("stop_after", 10**9), -1, -1))
        outcome = run_stage(
            StageRequest(**written),
            should_stop=lambda questions=questions: next(questions) == 0,
            rank=rank,
            world=world,
        )
        outcomes.append([outcome.status, outcome.error])
        distributed.barrier()  # no attempt begins before the one before it has ended on all ranks
    requests.with_name(f"outcomes-{rank}.json").write_text(json.dumps(outcomes))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
