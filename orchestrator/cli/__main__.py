"""`python -m raydistill.cli`: the `distill` command where it is not installed, as in a job on a Ray cluster."""

from raydistill.cli import main

main(prog_name="distill")
