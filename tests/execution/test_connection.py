"""What happens to signals and to our own words while Ray starts or is joined."""

import logging
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from raydistill.execution.ray_backend.connection import _core_messages, _own_signal_handlers


@pytest.fixture
def answered() -> Iterator[list[int]]:
    """Signals that our own handler of SIGTERM was told of."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_a_signal_that_meets_rays_own_answer_is_answered_by_us(answered: list[int]) -> None:
    def start_ray() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as `ray.init` does
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), _own_signal_handlers():
        start_ray()
    assert answered == [signal.SIGTERM]
    signal.raise_signal(signal.SIGTERM)
    assert len(answered) == 2


def test_what_we_say_while_ray_is_joined_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        with _core_messages() as messages:
            logging.getLogger("raydistill").warning("stopping")
            os.write(2, b"of the core")
            messages.seek(0)
            assert "of the core" in messages.read()
        logging.getLogger("raydistill").warning("stopped")
    finally:
        logging.getLogger().removeHandler(handler)
    assert capfd.readouterr().err == "stopping\nstopped\n"
