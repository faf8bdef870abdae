"""`plumbline promote` and `rollback`: change the champion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.tracking.model_version import ModelVersion
    from plumbline.tracking.registry import Registry


@click.command()
@click.argument("model")
@click.option("--why", required=True, metavar="TEXT", help="The reason; it is recorded with your name.")
@click.option("--anyway", is_flag=True, help="Promote it even if the last decision rejected it.")
def promote(model: str, why: str, anyway: bool) -> None:
    """Make MODEL the champion: a pair of the grid, its folder, a version number, or models:/NAME/VERSION.

    The registry records who (git's user, else the account), when and why. Exit status 1 if nothing was promoted.

    \b
    Example: plumbline promote random-64-w4a16-gptq --why "asked for by support, ticket 812"
    """
    from plumbline.artifact import read_json
    from plumbline.tracking import promotion
    from plumbline.tracking.registry import open_registry

    root = workspace_root()
    try:
        registry = open_registry(root)
        version = version_named(registry, model, root)
        record = root / "data" / "deployed_model" / "promotion.json"
        decision = read_json(record) if record.is_file() else {}
        if decision.get("model") == version.model and decision["decision"] == "rejected" and not anyway:
            failed = [check["sentence"] for check in decision["checks"] if not check["passed"]]
            raise ValueError(f"{version.pair} was rejected: {' '.join(failed)} Use --anyway to promote it")
        entry = promotion.promote(registry, root, version.version, promotion.user_name(root), why)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if entry is None:
        raise click.ClickException(f"{version.pair} (version {version.version}) is already the champion")
    _tell_dagster(registry)
    click.echo(
        f"{version.pair} (version {entry.version}) is the champion; previously: {_version_label(entry.from_version)}"
    )


@click.command()
@click.option("--why", required=True, metavar="TEXT", help="The reason; it is recorded with your name.")
def rollback(why: str) -> None:
    """Move the alias `champion` back to the previous champion.

    The model that was rolled back is not promoted again automatically, only by `plumbline promote`.

    \b
    Example: plumbline rollback --why "answers in the wrong language since Tuesday"
    """
    from plumbline.tracking import promotion
    from plumbline.tracking.registry import open_registry

    root = workspace_root()
    try:
        registry = open_registry(root)
        entry = promotion.rollback(registry, root, promotion.user_name(root), why)
        version = registry.version(entry.version)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _tell_dagster(registry)
    click.echo(
        f"{version.pair} (version {entry.version}) is the champion again; "
        f"rolled back: {_version_label(entry.from_version)}"
    )


def version_named(registry: Registry, name: str, root: Path) -> ModelVersion:
    """Resolve a name to a registered version.

    Raises:
        ValueError: no version is registered under this name.
    """
    from plumbline.provenance import dvc_digest
    from plumbline.tracking.model_version import ModelUri

    if name.startswith("models:"):
        uri = ModelUri.parse(name)
        if uri.name != registry.name:
            raise ValueError(f"{name}: the registered model of this workspace is {registry.name!r}")
        return registry.resolve(uri)
    if name.isdigit():
        return registry.version(name)
    folder = next((path for path in (Path(name), root / "data/quantized_model" / name) if path.is_dir()), None)
    if folder is None:
        pairs = ", ".join(sorted({version.pair for version in registry.versions()})) or "none"
        raise ValueError(f"{name} is not a folder, a version or a pair of the grid; registered pairs: {pairs}")
    return registry.of_model(dvc_digest(folder))


def _version_label(version: str | None) -> str:
    return "none" if version is None else f"version {version}"


def _tell_dagster(registry: Registry) -> None:
    """Report the champion as an observation of the asset; the record of the last decision is unchanged."""
    import dagster as dg

    from plumbline.graph.champion import champion_metadata
    from plumbline.graph.instance import instance

    with instance() as history:
        history.report_runless_asset_event(dg.AssetObservation("deployed_model", metadata=champion_metadata(registry)))


COMMANDS = [promote, rollback]
