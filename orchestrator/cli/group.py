"""The group of commands: errors become one line and an exit code."""

import sys
from typing import Any

import click

from raydistill.errors import DistillError, PlanError
from raydistill.masking import mask

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class Group(click.Group):
    """Turns our errors into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except PlanError as error:
            for line in mask(error.message).splitlines():  # a survey may have found several
                click.echo(f"error: {line}", err=True)
            sys.exit(WRONG)
        except DistillError as error:
            click.echo(f"error: {mask(error.message)}", err=True)
            sys.exit(FAILED)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. click itself would turn an interrupt into exit code 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
