"""The group of commands: errors become one line and an exit code."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from raydistill.cli.streams import degrade_output, flush_output, say_error
from raydistill.errors import DistillError, PlanError
from raydistill.masking import mask

log = logging.getLogger(__name__)

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = {"done": DONE, "failed": FAILED, "interrupted": INTERRUPTED}
"""By how a run or a search ended."""


def exit_code_of(error: BaseException) -> int:
    """With which code a command ends that raises this."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else DONE if error.code is None else FAILED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return WRONG if isinstance(error, PlanError) else FAILED


class Group(click.Group):
    """Turns our errors into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        degrade_output()
        try:
            with signals_as_interrupts():
                return super().main(*args, **kwargs)
        except PlanError as error:
            for line in mask(error.message).splitlines():  # a survey may have found several
                say_error(line)
            sys.exit(exit_code_of(error))
        except DistillError as error:
            say_error(mask(error.message))
            sys.exit(exit_code_of(error))
        except OSError as error:  # of a file that nobody expected to fail, or of the output itself
            log.debug("the error", exc_info=True)
            what = f"`{error.filename}`" if error.filename else "the output cannot be written"
            say_error(f"{what}: {error.strerror or error}")
            sys.exit(FAILED)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. click itself would turn an interrupt into exit code 1."""
        try:
            result = super().invoke(ctx)
            flush_output()
            return result
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that closes, are interrupts: Python alone would end without a word.

    Whatever is ignored, as `nohup` has it, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
