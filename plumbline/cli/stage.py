"""The commands of the stages in dvc.yaml."""

from __future__ import annotations

import sys

import click

from plumbline.workspace import workspace_root


@click.command()
@click.argument("asset")
@click.argument("key", required=False)
def materialize(asset: str, key: str | None) -> None:
    """Make ASSET, or its partition KEY, whether or not it is out of date: the command of its stage in dvc.yaml.

    \b
    Example: plumbline materialize calibration_set random-64
    """
    from plumbline.graph.materialize import materialize as make

    try:
        done = make(workspace_root(), asset, key)
    except (KeyError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for warning in done.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if done.error:
        click.echo(f"Error: {done.error}", err=True)
        sys.exit(1)


@click.command(name="code-versions")
def code_versions() -> None:
    """Write data/code_versions.yaml: the code version of each asset, as the library is installed now.

    A stage is out of date once its version changes. Comments, docstrings and layout change none.

    \b
    Example: plumbline code-versions
    """
    from plumbline.versioning.recording import refresh_code_versions

    try:
        refresh_code_versions(workspace_root())
    except ValueError as error:
        raise click.ClickException(str(error)) from error


COMMANDS = [materialize, code_versions]
