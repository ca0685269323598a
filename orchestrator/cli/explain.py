"""The command that explains names."""

import click


@click.command()
@click.argument("name", required=False)
def explain(name: str | None) -> None:
    """Print what any word of a plan means and can be told: keys with their types, defaults and descriptions, sources.

    \b
    distill explain            all names
    distill explain hinton
    distill explain early_stopping
    """
    from raydistill import explain as explain_name

    click.echo(explain_name(name))
