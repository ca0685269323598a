"""What a training costs: the fastest epoch's step, everything trained, and a peak of memory that is its own."""

from typing import Any

import pytest
import torch
from torch import nn

from raydistill.methods.supervised import Supervised
from raydistill.training.cost import Cost
from raydistill.training.loop import fit


def test_the_step_time_is_that_of_the_fastest_epoch() -> None:
    times = iter([0.0, 8.0, 10.0, 14.0, 20.0, 25.0])
    measured = Cost(nn.Linear(2, 2), "cpu", lambda: next(times))
    for first in (0, 4, 8):
        measured.begin_epoch(first)
        measured.end_epoch(first + 4)
    assert measured.to_dict()["seconds_per_step"] == 1.0


def test_an_epoch_of_which_nothing_was_left_has_no_step_time() -> None:
    measured = Cost(nn.Linear(2, 2), "cpu")
    measured.begin_epoch(7)
    measured.end_epoch(7)
    assert "seconds_per_step" not in measured.to_dict()


def test_only_what_is_trained_is_counted() -> None:
    learner = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    learner[0].requires_grad_(False)
    assert Cost(learner, "cpu").to_dict()["trained_parameters"] == 5 * 2 + 2


def test_the_peak_is_of_this_training_and_not_of_one_before() -> None:
    before = Cost(nn.Linear(2, 2), "cpu")
    if "peak_bytes" not in before.to_dict():
        pytest.skip("this system does not tell the peak of a process's memory")
    big = torch.ones(64 * 2**20)  # 256 MiB
    with_big = before.to_dict()["peak_bytes"]
    del big
    after = Cost(nn.Linear(2, 2), "cpu").to_dict()["peak_bytes"]
    assert with_big - after > 200 * 2**20


def test_a_training_says_what_it_cost(bench: Any) -> None:
    context, config = bench.context("train-0"), bench.settings()
    model = bench.mlp()
    fit(model, Supervised(), bench.transfer(), None, config, context)
    assert context.costs["trained_parameters"] == sum(p.numel() for p in model.parameters())
    assert 0 < context.costs["seconds_per_step"] < 60
