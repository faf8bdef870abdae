"""`plumbline verify`, `reconcile` and `push`: verify the workspace, update Dagster's history, fill DVC's remote."""

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


@click.command()
def push() -> None:
    """Bring to DVC's remote what the workspace and every registered model rest on.

    `dvc push` alone brings what dvc.lock names now, and so not the content of a champion that was made before.

    \b
    Example: plumbline push
    """
    from plumbline.cli.gc import retained
    from plumbline.params import load_params
    from plumbline.versioning.push import push as push_all

    root = workspace_root()
    try:
        hashes, versions = retained(root, (), unregistered=True)
        push_all(root, hashes, load_params(root).storage.remote)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"on DVC's remote: the workspace, and everything that {len(versions)} registered versions were made from"
    )


COMMANDS = (verify, reconcile, push)
