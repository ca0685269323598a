"""What is said about a split, by one worker or several, against one matrix of all logits in float64."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raydistill.errors import StageError
from raydistill.metrics import Answers, Loss, Metric
from raydistill.tasks.splits import TensorSplit
from raydistill.training import evaluation
from raydistill.training.evaluation import (
    ask,
    judge,
    keep_for_report,
    keep_what_is_needed,
    logits_in_batches,
)
from raydistill.training.workers import ALONE, Workers

WORKER = Path(__file__).with_name("asking_worker.py")
WORLD = 2


class MeanLogit(Metric):
    name = "mean_logit"
    needs_logits = True

    def compute(self, answers: Answers) -> float:
        return float(answers.logits.mean())


def drawn(samples: int, classes: int) -> TensorSplit:
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(samples, classes, generator=draw)
    return TensorSplit(logits, torch.randint(classes, (samples,), generator=draw), torch.arange(samples) * 10)


def same(inputs: Tensor) -> Tensor:
    return inputs


@pytest.mark.parametrize("world", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 7, 8, 9, 20])
def test_parts_of_workers_are_the_whole_list_in_order_and_about_equally_long(count: int, world: int) -> None:
    pieces = list(range(count))
    parts = [list(Workers(rank, world).own(pieces)) for rank in range(world)]
    assert [piece for part in parts for piece in part] == pieces
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts[0] or not pieces
    sizes = [3 + piece for piece in pieces]
    assert Workers(0, world).counts(sizes) == [sum(sizes[piece] for piece in part) for part in parts]


@pytest.mark.parametrize(
    ("world", "backend", "expected"),
    [
        (1, "gloo", ALONE),
        (2, None, ALONE),  # they claim pieces
        (2, "gloo", Workers(1, 2, "cpu")),  # it gathers on no GPU
        (2, "nccl", Workers(1, 2, "cuda:1")),
    ],
)
def test_a_group_exchanges_where_its_back_end_can(
    monkeypatch: pytest.MonkeyPatch, world: int, backend: str | None, expected: Workers
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: backend is not None)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    context: Any = SimpleNamespace(rank=1, world=world, device="cuda:1")
    assert Workers.of(context) == expected


@pytest.mark.slow  # two processes that import torch
def test_two_workers_hear_what_one_hears_whatever_the_size_of_the_split(tmp_path: Path) -> None:
    arguments = [str(WORLD), str(tmp_path / "rendezvous"), str(tmp_path)]
    started = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), *arguments]) for rank in range(WORLD)
    ]
    try:
        assert [worker.wait(timeout=300) for worker in started] == [0] * WORLD
    finally:
        for worker in started:
            worker.kill()
            worker.wait()
    heard = [load_file(tmp_path / f"heard-{rank}.safetensors") for rank in range(WORLD)]
    sizes = sorted({int(key.split("/")[1]) for key in heard[0]})
    assert len(sizes) > 5
    for size in sizes:
        asked = torch.cat([each[f"together/{size}/asked"] for each in heard])
        assert asked.tolist() == list(range(size))
    for rank, each in enumerate(heard):
        for key, value in each.items():
            if key.startswith("alone/") and not key.endswith("/asked"):
                if rank and key.endswith("/logits"):
                    continue  # the main one's alone
                together = each[key.replace("alone/", "together/", 1)]
                assert together.dtype == value.dtype
                assert torch.equal(together, value), key


def test_columns_of_batches_are_those_of_all_logits_at_once() -> None:
    split = drawn(53, 7)
    told = ask(same, split, lambda _: torch.arange(0), batch_size=10)
    logits = split.inputs.double()
    assert told.columns.predicted.tolist() == logits.argmax(dim=1).tolist()
    probabilities = logits.softmax(dim=1)
    np.testing.assert_allclose(told.columns.confidences, probabilities.amax(dim=1), rtol=1e-6)
    own = probabilities[torch.arange(53), split.labels]
    np.testing.assert_allclose(told.columns.losses, -own.log(), rtol=1e-5)
    assert told.columns.before.tolist() == (probabilities > own[:, None]).sum(dim=1).tolist()
    assert judge(told, split.labels, [Loss])["loss"] == pytest.approx(-own.log().mean().item(), rel=1e-7)
    assert not told.logits.numel()


def test_logits_are_kept_for_a_metric_that_says_it_needs_them() -> None:
    split = drawn(20, 4)
    told = ask(same, split, partial(keep_what_is_needed, 20, [Loss, MeanLogit]), batch_size=6)
    assert torch.equal(told.logits, torch.cat(list(logits_in_batches(same, split))))
    assert judge(told, split.labels, [MeanLogit])["mean_logit"] == pytest.approx(split.inputs.mean().item())


def test_a_metric_that_does_not_say_so_is_told_what_to_write() -> None:
    class Silent(MeanLogit):
        name = "silent"
        needs_logits = False

    split = drawn(20, 4)
    told = ask(same, split, partial(keep_for_report, 20, [Silent]))
    assert told.is_whole, "and yet the metric may not look: of a larger split they would be gone"
    with pytest.raises(
        StageError, match=r"metric `silent` looks at the logits .*write `needs_logits = True`"
    ):
        judge(told, split.labels, [Silent])


def test_a_metric_that_needs_more_logits_than_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MOST_LOGITS", 79)
    for keep in (keep_what_is_needed, keep_for_report):
        with pytest.raises(StageError, match=r"metric `mean_logit` needs .* 20 samples of 4 classes"):
            ask(same, drawn(20, 4), partial(keep, 20, [MeanLogit]))


def test_of_a_large_split_a_sample_of_logits_is_stored_and_columns_of_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluation, "MOST_LOGITS", 100)
    monkeypatch.setattr(evaluation, "SAMPLED_LOGITS", 40)
    split = drawn(53, 4)
    told = ask(same, split, partial(keep_for_report, 53, [Loss]), batch_size=8)
    assert len(told.rows) == 10
    assert torch.equal(told.logits, split.inputs[told.rows])
    context: Any = SimpleNamespace(is_judged=False, path=tmp_path.joinpath)
    evaluation.save_predictions(context, "test", split, told)
    stored = load_file(tmp_path / "predictions-test.safetensors")
    assert stored["ids"].tolist() == split.ids[told.rows].tolist()
    assert torch.equal(stored["logits"].float(), split.inputs[told.rows].half().float())
    assert stored["all_predicted"].tolist() == split.inputs.argmax(dim=1).tolist()
    assert stored["all_ids"].tolist() == split.ids.tolist()
    assert max(value.numel() for value in stored.values()) == 53
