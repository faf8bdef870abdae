"""The commands of the stages in dvc.yaml."""

from __future__ import annotations

import sys

import click

from plumbline.workspace import workspace_root


@click.command()
@click.argument("asset")
@click.argument("key", required=False)
def materialize(asset: str, key: str | None) -> None:
    """Materialize ASSET, or its partition KEY, even if it is up to date; the command of its stage in dvc.yaml.

    \b
    Example: plumbline materialize calibration_set random-64
    """
    from plumbline.graph.materialize import materialize as make

    try:
        result = make(workspace_root(), asset, key)
    except (KeyError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for warning in result.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if result.error:
        click.echo(f"Error: {result.error}", err=True)
        sys.exit(1)


@click.command(name="code-versions")
def code_versions() -> None:
    """Write data/code_versions.yaml: the code version of each asset in the installed library.

    A stage is out of date when its code version changes. Comments, docstrings and formatting do not change it.

    \b
    Example: plumbline code-versions
    """
    from plumbline.versioning.recording import refresh_code_versions

    try:
        refresh_code_versions(workspace_root())
    except ValueError as error:
        raise click.ClickException(str(error)) from error


COMMANDS = [materialize, code_versions]
