"""`--then`: a command of the user's own when a run or a search has ended, however it ended."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from raydistill.cli.group import DONE, INTERRUPTED, WRONG, exit_code_of
from raydistill.masking import mask

OPTION = "--then"
STDERR = 2

then_option = click.option(
    OPTION,
    "then",
    metavar="COMMAND",
    help="When it has ended, run this in a shell, with RAYDISTILL_STATUS and others set.",
)


@dataclass
class Ending:
    """What the command is told; whoever knows more than the exit code fills it in."""

    status: str = ""
    folder: Path | None = None
    error: str = ""

    def variables(self, plan: Path, exit_code: int) -> dict[str, str]:
        """The variables of the command's environment. What is not known is empty."""
        statuses = {DONE: "done", WRONG: "refused", INTERRUPTED: "interrupted"}
        return {
            "RAYDISTILL_PLAN": str(plan),
            "RAYDISTILL_STATUS": self.status or statuses.get(exit_code, "failed"),
            "RAYDISTILL_EXIT_CODE": str(exit_code),
            "RAYDISTILL_FOLDER": "" if self.folder is None else str(self.folder),
            "RAYDISTILL_ERROR": mask(self.error),
        }


@contextmanager
def followed_by(command: str | None, plan: Path) -> Iterator[Ending]:
    """Run the command after the block, also after an error of it. How the command ends changes nothing."""
    ending = Ending()
    if command is None:
        yield ending
        return
    code = DONE
    try:
        yield ending
    except BaseException as error:
        code = exit_code_of(error)
        if not isinstance(error, SystemExit):
            ending.error = ending.error or str(getattr(error, "message", None) or error)
        raise
    finally:
        _run(command, ending.variables(plan, code))


def _run(command: str, variables: dict[str, str]) -> None:
    """Stdout is for the results: what the command prints goes to stderr."""
    sys.stdout.flush()
    try:
        code = subprocess.run(
            command, shell=True, env=os.environ | variables, stdout=STDERR, check=False
        ).returncode
    except KeyboardInterrupt:
        click.echo(f"{OPTION}: interrupted", err=True)
    except (OSError, ValueError) as error:
        click.echo(f"{OPTION}: the command cannot be started: {error}", err=True)
    else:
        if code:
            how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
            click.echo(f"{OPTION}: the command {how}; the exit code here is that of the run", err=True)


def without_then(arguments: Sequence[str]) -> list[str]:
    """A command line as it is kept with results: how they are made again. A command may hold what is nobody's
    business, and makes no results."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == OPTION:
            next(words, None)
        elif not word.startswith(f"{OPTION}="):
            kept.append(word)
    return kept
