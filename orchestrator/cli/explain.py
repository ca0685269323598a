"""The command that explains names."""

import click


@click.command()
@click.argument("name", required=False)
def explain(name: str | None) -> None:
    """Print what a stage, method, model, task or schedule can be told: settings, defaults, sources.

    \b
    distill explain            all names
    distill explain hinton
    """
    from raydistill.explain import explain as explain_name

    click.echo(explain_name(name))
