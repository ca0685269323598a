"""Memory of batches that is used again: never while anybody can still read what lies in it."""

import gc
import threading

import pytest
import torch

from raydistill.tasks.batch_memory import SMALL, batch_floats
from raydistill.tasks.normalisation import Normalisation

SHAPE = (4, SMALL)


def test_what_nobody_holds_is_used_again() -> None:
    first = batch_floats(SHAPE)
    place = first.data_ptr()
    del first
    assert batch_floats(SHAPE).data_ptr() == place


@pytest.mark.parametrize(
    "part", [lambda x: x[1:3], lambda x: x.numpy(), lambda x: x.view(-1), lambda x: x.t()]
)
def test_what_somebody_holds_a_part_of_stays(part: object) -> None:
    assert callable(part)
    first = batch_floats(SHAPE).fill_(7.0)
    kept = part(first)
    place = first.data_ptr()
    del first
    gc.collect()
    second = batch_floats(SHAPE)
    assert second.data_ptr() != place
    second.fill_(0.0)
    assert (kept == 7.0).all()


def test_what_a_backward_pass_needs_stays() -> None:
    weight = torch.ones(SMALL, requires_grad=True)
    loss = (batch_floats(SHAPE).fill_(3.0) * weight).sum()
    batch_floats(SHAPE).fill_(0.0)
    loss.backward()
    assert weight.grad is not None
    assert (weight.grad == 12.0).all()


def test_a_batch_of_another_size_is_whole() -> None:
    batch_floats(SHAPE)
    other = batch_floats((2, SMALL))
    assert other.shape == (2, SMALL)
    assert other.is_contiguous()
    assert batch_floats((3,)).shape == (3,)


def test_threads_never_share_memory() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            own = batch_floats(SHAPE).fill_(float(number))
            if not (own == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_batch_is_normalised_as_any_input_is() -> None:
    normalisation = Normalisation(torch.rand(3, 1, 1), 1 + torch.rand(3, 1, 1))
    inputs = torch.rand(8, 3, 224, 224)
    before = inputs.clone()
    assert torch.equal(normalisation.of_batch(inputs), normalisation(inputs))
    assert torch.equal(inputs, before)
    grey = torch.rand(4, 1, 1, 1)  # becomes as wide as the mean
    assert torch.equal(normalisation.of_batch(grey), normalisation(grey))
    words = torch.arange(12).view(3, 4)
    assert torch.equal(normalisation.of_batch(words), words)
