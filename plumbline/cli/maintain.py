"""`plumbline verify` and `reconcile`: verify the files of the workspace, and update Dagster's history."""

from __future__ import annotations

import sys

import click

from plumbline.workspace import workspace_root


@click.command()
def verify() -> None:
    """Re-hash every artifact and every object of DVC's cache, because DVC itself trusts read-only cache files.

    Exit status 1 if the content of any does not match its hash.

    \b
    Example: plumbline verify
    """
    from plumbline.provenance import verify as verify_workspace

    try:
        root = workspace_root()
        wrong = verify_workspace(root)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for line in wrong:
        click.echo(line)
    if (root / "dvc.lock").is_file():
        bad = f"{len(wrong)} not as recorded"
        click.echo(bad if wrong else "every artifact and cache object matches its hash")
    sys.exit(1 if wrong else 0)


@click.command()
def reconcile() -> None:
    """Report to Dagster what `dvc repro`, `dvc checkout` or `dvc pull` changed.

    \b
    Example: dvc pull && plumbline reconcile
    """
    from plumbline.graph.definitions import load_definitions
    from plumbline.graph.instance import instance
    from plumbline.graph.reconcile import reconcile as report

    with instance() as history:
        names = report(history, load_definitions(workspace_root()))
    click.echo(f"reported {len(names)} artifacts to Dagster" if names else "Dagster has every artifact in dvc.lock")


COMMANDS = (verify, reconcile)
