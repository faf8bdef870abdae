"""`plumbline promote`, `rollback` and `gc`: what people do to the registry and to what it rests on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.tracking.model_version import Version
    from plumbline.tracking.promotion import Registry


@click.command()
@click.argument("model")
@click.option("--why", required=True, metavar="TEXT", help="The reason, which is kept with your name.")
@click.option("--anyway", is_flag=True, help="Also a candidate that the last decision rejected.")
def promote(model: str, why: str, anyway: bool) -> None:
    """Make MODEL the champion by hand: a pair of the grid, its folder, a version number, or models:/NAME/VERSION.

    Who (git's user, else the account), when and why are kept in the registry. Exit status 1 if nothing was promoted.

    \b
    Example: plumbline promote random-64-w4a16-gptq --why "asked for by support, ticket 812"
    """
    from plumbline.artifact import read_json
    from plumbline.tracking.client import TrackingError
    from plumbline.tracking.promotion import who
    from plumbline.tracking.run_logging import registry

    root = workspace_root()
    try:
        models = registry(root)
        version = version_named(models, model, root)
        record = root / "data" / "deployed_model" / "promotion.json"
        decided = read_json(record) if record.is_file() else {}
        if decided.get("model") == version.model and decided["decision"] == "rejected" and not anyway:
            failed = [check["sentence"] for check in decided["checks"] if not check["passed"]]
            raise ValueError(f"{version.pair} was rejected: {' '.join(failed)} With --anyway it becomes the champion")
        done = models.promote(version.version, who(root), why)
    except (ValueError, OSError, TrackingError) as error:
        raise click.ClickException(str(error)) from error
    if done is None:
        raise click.ClickException(f"{version.pair} (version {version.version}) is the champion already")
    _tell_dagster(models)
    click.echo(f"{version.pair} (version {done.version}) is the champion; before: {_before(done.from_version)}")


@click.command()
@click.option("--why", required=True, metavar="TEXT", help="The reason, which is kept with your name.")
def rollback(why: str) -> None:
    """Give the alias `champion` back to the model that had it before.

    What was taken back is not promoted again by itself, only by `plumbline promote`.

    \b
    Example: plumbline rollback --why "answers in the wrong language since Tuesday"
    """
    from plumbline.tracking.client import TrackingError
    from plumbline.tracking.promotion import who
    from plumbline.tracking.run_logging import registry

    root = workspace_root()
    try:
        models = registry(root)
        done = models.rollback(who(root), why)
        version = models.version(done.version)
    except (ValueError, OSError, TrackingError) as error:
        raise click.ClickException(str(error)) from error
    _tell_dagster(models)
    click.echo(
        f"{version.pair} (version {done.version}) is the champion again; taken back: {_before(done.from_version)}"
    )


@click.command()
@click.option("--cloud", is_flag=True, help="Also in DVC's default remote.")
@click.option("--all-commits", is_flag=True, help="Also keep what any git commit names.")
@click.option("--dry", is_flag=True, help="Only say what would go.")
def gc(cloud: bool, all_commits: bool, dry: bool) -> None:
    """Free DVC's cache of what neither the workspace nor a registered model rests on.

    A bare `dvc gc -w` would delete the champion's weights as soon as the grid has moved on. What a version of the
    registry was made from is kept until the version is deleted there.

    \b
    Example: plumbline gc --dry
    """
    from plumbline.tracking.client import TrackingError
    from plumbline.tracking.run_logging import registry
    from plumbline.versioning.garbage import collect

    root = workspace_root()
    options = [name for name, on in (("--cloud", cloud), ("--all-commits", all_commits), ("--dry", dry)) if on]
    try:
        versions = registry(root).versions()
        said = collect(root, frozenset().union(*(each.rests_on for each in versions)), options)
    except (ValueError, OSError, RuntimeError, TrackingError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(said)
    click.echo(f"kept: the workspace, and what {len(versions)} registered versions rest on")


def version_named(models: Registry, name: str, root: Path) -> Version:
    """The registered version that a person means.

    Raises:
        ValueError: nothing is registered under this name; TrackingError likewise.
    """
    from plumbline.provenance import dvc_digest

    uri = re.fullmatch(r"models:/(?P<model>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[\w-]+))", name)
    if uri and uri["model"] != models.name:
        raise ValueError(f"{name}: the registered model of this workspace is {models.name!r}")
    if uri and uri["alias"]:
        found = models.champion() if uri["alias"] == "champion" else None
        if found is None:
            raise ValueError(f"{name}: no version carries this alias")
        return found
    if uri or name.isdigit():
        return models.version(uri["version"] if uri else name)
    folder = next((path for path in (Path(name), root / "data/quantized_model" / name) if path.is_dir()), None)
    if folder is None:
        known = ", ".join(sorted({each.pair for each in models.versions()})) or "none"
        raise ValueError(f"{name} is no folder, no version and no pair of the grid; registered pairs: {known}")
    return models.of_model(dvc_digest(folder))


def _before(version: str | None) -> str:
    return "none" if version is None else f"version {version}"


def _tell_dagster(models: Registry) -> None:
    """Show the champion on the asset, as an observation: the record of the last decision stays what it is."""
    import dagster as dg

    from plumbline.graph.instance import instance
    from plumbline.tracking.run_logging import champion_metadata

    with instance() as history:
        history.report_runless_asset_event(dg.AssetObservation("deployed_model", metadata=champion_metadata(models)))


COMMANDS = [promote, rollback, gc]
