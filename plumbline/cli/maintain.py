"""`plumbline verify` and `reconcile`: check the workspace, and bring Dagster's history up to what is in place."""

from __future__ import annotations

import sys

import click

from plumbline.workspace import workspace_root


@click.command()
def verify() -> None:
    """Re-hash every artifact and every object of DVC's cache: DVC itself trusts read-only cache files.

    Exit status 1 if one of them does not hold what its hash says.

    \b
    Example: plumbline verify
    """
    from plumbline.provenance import verify as verify_workspace

    try:
        wrong = verify_workspace(workspace_root())
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for line in wrong:
        click.echo(line)
    click.echo(f"{len(wrong)} corrupted" if wrong else "every artifact and cache object holds what its hash says")
    sys.exit(1 if wrong else 0)


@click.command()
def reconcile() -> None:
    """Tell Dagster what `dvc repro`, `dvc checkout` or `dvc pull` put in place.

    \b
    Example: dvc pull && plumbline reconcile
    """
    from plumbline.graph.definitions import load_definitions
    from plumbline.graph.instance import instance
    from plumbline.graph.reconcile import reconcile as report

    with instance() as history:
        names = report(history, load_definitions(workspace_root()))
    click.echo(f"reported {len(names)} artifacts to Dagster" if names else "Dagster knows everything in dvc.lock")


COMMANDS = (verify, reconcile)
