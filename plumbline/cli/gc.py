"""`plumbline gc`: free DVC's cache of what nothing rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.tracking.model_version import ModelVersion
    from plumbline.versioning.garbage import Garbage
    from plumbline.versioning.leftover_parts import Leftover

PROMOTION = "data/deployed_model/promotion.json"
SHOWN = 20


@click.command()
@click.option("--cloud", is_flag=True, help="Also delete from DVC's default remote.")
@click.option("--all-commits", is_flag=True, help="Also keep what any git commit references.")
@click.option("--dry", is_flag=True, help="Only list what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@click.option(
    "--projects",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Another project that uses the cache or remote; what it needs is kept, too (repeatable).",
)
@click.option("--alone", is_flag=True, help="No other project uses the cache outside of the workspace, or the remote.")
@click.option(
    "--unregistered", is_flag=True, help="Go on although the champion is registered in no known MLflow store."
)
def gc(
    cloud: bool, all_commits: bool, dry: bool, yes: bool, projects: tuple[Path, ...], alone: bool, unregistered: bool
) -> None:
    """Delete from DVC's cache what neither the workspace nor a registered model needs.

    `dvc gc -w` alone would delete the champion's weights as soon as the grid no longer contains it. Everything that a
    registered version was made from is kept until that version is deleted from the registry. What interrupted steps
    left to go on from is deleted, too, where no run needs it any more. What would be deleted is shown before anything
    is.

    \b
    Example: plumbline gc --dry
    """
    from plumbline.versioning.garbage import collect, garbage
    from plumbline.versioning.leftover_parts import leftover_parts, remove_parts

    root = workspace_root()
    options = [name for name, on in (("--cloud", cloud), ("--all-commits", all_commits)) if on]
    try:
        require_sole_use(root, projects, alone, cloud)
        hashes, versions = retained(root, projects, unregistered)
        unused, parts = garbage(root, hashes, options, projects), leftover_parts(root)
        click.echo(described(unused, dry))
        for left in parts:
            click.echo(described_parts(left, dry))
        click.echo(f"kept: the workspace, and everything that {len(versions)} registered versions were made from")
        unneeded = [left for left in parts if not left.needed]
        if dry or not (unused.objects or unneeded):
            return
        if not yes:
            click.confirm("Delete them?", abort=True)
        if unneeded:
            click.echo(f"Removed the parts of {remove_parts(root, unneeded)} interrupted steps.")
        if unused.objects:
            click.echo(collect(root, hashes, options, projects))
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error


def require_sole_use(root: Path, projects: Sequence[Path], alone: bool, cloud: bool) -> None:
    """Refuse to delete what another project may need.

    Raises:
        ValueError: the cache has other users that `projects` does not name; or it lies outside of the workspace, or a
            remote is concerned, and neither `projects` nor `alone` says who else uses it.
    """
    from plumbline.versioning.cache import cache_folder
    from plumbline.versioning.cache_users import is_outside, other_users

    cache, named = cache_folder(root).parents[1], {path.resolve() for path in projects}
    if others := [path for path in other_users(root) if path not in named]:
        names = " ".join(f"--projects {path}" for path in others)
        raise ValueError(
            f"the cache {cache} is used by {len(others)} other workspaces, whose objects would be deleted: name them "
            f"with `plumbline gc {names}`. Nothing was deleted"
        )
    if (cloud or is_outside(root)) and not projects and not alone:
        place = "DVC's remote" if cloud else f"the cache {cache}, which lies outside of the workspace,"
        raise ValueError(
            f"{place} may serve other projects, and DVC does not record which: name them with --projects DIR "
            "(repeatable), or say --alone where there are none. Nothing was deleted"
        )


def retained(root: Path, projects: Sequence[Path], unregistered: bool) -> tuple[frozenset[str], list[ModelVersion]]:
    """The hashes that registered versions and the records of deployment rest on, and these versions.

    Raises:
        ValueError: a store cannot be read; or a deployed model is registered in none, and `unregistered` is off.
    """
    from plumbline.tracking.address import shown_uri
    from plumbline.tracking.retained import known_stores, retained_versions
    from plumbline.versioning.garbage import upstream_hashes
    from plumbline.versioning.lock import read_lock

    hashes: set[str] = set()
    versions: list[ModelVersion] = []
    for workspace in (root, *(path.resolve() for path in projects)):
        read_lock(workspace)  # what cannot be read would be taken for unused
        of_workspace, deployed = retained_versions(workspace), deployed_models(workspace)
        versions += of_workspace
        if deployed and not unregistered and deployed[0] not in {version.model for version in of_workspace}:
            stores = ", ".join(map(shown_uri, known_stores(workspace))) or "none; the workspace has no mlflow.db"
            raise ValueError(
                f"{workspace / PROMOTION} says that {deployed[0]} was deployed, but no version of it is registered in "
                f"the known MLflow stores ({stores}), so what else is registered is unknown, too. Name the store in "
                "tracking.uri or MLFLOW_TRACKING_URI; where its versions were deleted on purpose, say --unregistered. "
                "Nothing was deleted"
            )
        for version in of_workspace:
            hashes |= version.rests_on
        hashes |= upstream_hashes(workspace, {*deployed, *(v.model for v in of_workspace if v.model)})
    return frozenset(hashes), versions


def deployed_models(root: Path) -> list[str]:
    """DVC hashes of the champion and its predecessors in the last record of deployment; empty without one.

    Raises:
        ValueError: the record cannot be read, or dvc.lock names one that is absent.
    """
    from plumbline.artifact import read_json
    from plumbline.versioning.lock import read_lock

    path = root / PROMOTION
    if not path.is_file():
        if "deployed_model" in read_lock(root):
            raise ValueError(
                f"dvc.lock says that a model was deployed, but {path} is absent: run `dvc checkout "
                f"{Path(PROMOTION).parent}`. Nothing was deleted"
            )
        return []
    record = read_json(path)
    before = record.get("champion_before") or {}
    promoted = [record.get("model")] if record.get("decision") == "promoted" else []
    return [str(md5) for md5 in (*promoted, before.get("model")) if md5]


def described(unused: Garbage, dry: bool) -> str:
    """What would be deleted: the artifacts with their versions, and how much space they take."""
    if not unused.objects:
        return "nothing to delete"
    counts = Counter(unused.artifacts)
    lines = [f"  {path}: {count} {'version' if count == 1 else 'versions'}" for path, count in counts.items()]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"  … and {len(lines) - SHOWN} more artifacts"]
    size = f"{unused.bytes / 1e6:,.1f} MB of DVC's cache"
    return "\n".join([f"{'would delete' if dry else 'to delete'}: {len(unused.objects)} objects, {size}", *lines])


def described_parts(left: Leftover, dry: bool) -> str:
    """What becomes of the parts of an interrupted step, in a line."""
    size = f"{left.bytes / 1e6:,.1f} MB that an interrupted {left.step} left in .plumbline/parts"
    if left.needed:
        return f"kept: {size}: {left.needed}"
    return f"{'would delete' if dry else 'to delete'}: {size}; no run needs them any more"


COMMANDS = (gc,)
