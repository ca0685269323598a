"""Commands about the tracking store."""

from pathlib import Path

import click

from raydistill.cli.options import finds_own_modules, runs_option, tracking_option


@click.command()
@runs_option
@tracking_option
@finds_own_modules
def sync(root: Path, tracking_uri: str | None) -> None:
    """Send to MLflow what could not be sent while plans ran.

    With `--tracking-uri`, all that the storage root knows and that store does not: plan runs, stages with their curves,
    students, searches.

    \b
    distill sync
    distill sync --tracking-uri http://mlflow.example:5000
    """
    from raydistill import sync as sync_runs

    for line in sync_runs(root.absolute(), tracking_uri):
        click.echo(line)


@click.command()
@runs_option
@tracking_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True)
def ui(root: Path, tracking_uri: str | None, host: str, port: int) -> None:
    """Open the MLflow UI on the storage root's tracking store.

    \b
    distill ui
    distill ui --port 5001 --runs /shared/runs
    """
    from raydistill import serve

    serve(root.absolute(), tracking_uri, host=host, port=port)
