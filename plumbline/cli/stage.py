"""The commands of the stages in dvc.yaml."""

from __future__ import annotations

import click

from plumbline.versioning.code import VERSIONS
from plumbline.versioning.facts import BASE_MODEL, NAMED_OUTPUTS
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
        raise click.ClickException(result.error)


@click.command()
def declare() -> None:
    """List in dvc.yaml the folders and files that params.yaml names, so that DVC sees their changes.

    `plumbline run` and Dagster do this themselves; `dvc repro` cannot.

    \b
    Example: plumbline declare && dvc repro
    """
    from plumbline.graph.declared import declare as bring_in_line

    try:
        changes = bring_in_line(workspace_root())
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(changes) or "dvc.yaml lists what params.yaml names")


@click.command(name="code-versions")
def code_versions() -> None:
    """Write data/code_versions.yaml: the code version of each asset in the installed library.

    A stage is out of date when its code version changes. Comments, docstrings and formatting do not change it.

    \b
    Example: plumbline code-versions
    """
    _refresh(VERSIONS)


@click.command(name="base-model")
def base_model() -> None:
    """Write data/base_model.yaml: digests of the base model's weights and of its tokenizer.

    A stage that reads the base model is out of date when one of its files changes.

    \b
    Example: plumbline base-model
    """
    _refresh(BASE_MODEL)


@click.command(name="named-outputs")
def named_outputs() -> None:
    """Write data/named_outputs.yaml: the outputs of the pairs in the grid, with their hashes.

    The report and the promotion depend on these only, not on what an earlier grid left under data/.

    \b
    Example: plumbline named-outputs
    """
    _refresh(NAMED_OUTPUTS)


def _refresh(file: str) -> None:
    from plumbline.versioning.recording import refresh_facts

    try:
        refresh_facts(workspace_root(), [file])
    except ValueError as error:
        raise click.ClickException(str(error)) from error


COMMANDS = [materialize, declare, code_versions, base_model, named_outputs]
