"""Results as one JSON document on stdout, for programs: whatever else is written meanwhile goes to stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import click


def echo_json(values: Any) -> None:
    """The document."""
    from raydistill.runs.files import json_text

    click.echo(json_text(values), nl=False)


@contextmanager
def kept_clean(as_json: bool) -> Iterator[None]:
    """With `as_json`, what is printed here goes to stderr: a plan may run code of the user's own, which may print."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield
