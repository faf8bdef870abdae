"""`plumbline status`: what is out of date, and why, on one screen."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import click

from plumbline.workspace import workspace_root

SHOWN = 3
"""Reasons of a stage, groups of an asset, and names of a list that are shown without --all."""


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every stage and reason, not one line per asset and reason.")
def status(everything: bool) -> None:
    """List what is out of date, and why. Exit status 1 if anything is.

    \b
    Example: plumbline status || plumbline run
    """
    from plumbline.graph.intake import waiting
    from plumbline.versioning.dvc_locks import FILE, remove_damaged_locks
    from plumbline.versioning.pipeline import on_request
    from plumbline.versioning.status import changed_stages, leftovers

    root = workspace_root()
    if remove_damaged_locks(root):
        click.echo(f"removed {FILE}, which a killed command of DVC had left damaged")
    new = waiting(root).as_dict()
    inbox = [f"inbox: {name} is not in the corpus yet" for name in new.get("waiting", [])]
    inbox += [f"inbox: {name} was deleted, but is still in the corpus" for name in new.get("removed", [])]
    _echo(_first(inbox, everything))
    changed = changed_stages(root)
    _echo(in_full(changed) if everything else by_asset(changed))
    lost = [f"registry: {name} is evaluated, but has no version" for name in _unregistered(root)]
    _echo(_first(lost, everything))
    stale = f"{_stages(len(changed))} out of date: plumbline run" if changed else ""
    others = "the inbox has changes: plumbline run" if new else "the registry lacks versions: plumbline run"
    click.echo(stale or (others if new or lost else "everything is up to date"))
    if names := on_request(root):
        for name, why in changed_stages(root, *names).items():
            click.echo(f"on request (plumbline study): {name}\n    " + "\n    ".join(why))
    if left := leftovers(root):
        click.echo("\nunder data/, but no longer in params.yaml; nothing reads them:")
        _echo(_first([f"  rm -r {shlex.quote(path)}" for path in left], everything, indent="  "))
    sys.exit(1 if changed or new or lost else 0)


def in_full(changed: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Every stage, and its reasons below it."""
    for name, reasons in changed.items():
        yield name
        yield from (f"    {reason}" for reason in reasons)


def by_asset(changed: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line per asset and reason: `evaluation: never run (16: random-64-w4a16-gptq, …)`."""
    for asset, names in groupby(changed, key=lambda name: name.split("@")[0]):
        groups: dict[str, list[str]] = {}
        for name in names:
            reasons = changed[name]
            why = "; ".join(reasons[:SHOWN]) + (
                f"; {len(reasons) - SHOWN} more reasons" if len(reasons) > SHOWN else ""
            )
            groups.setdefault(why, []).append(name.partition("@")[2])
        lines = [f"{asset}: {why}{_keys(keys)}" for why, keys in groups.items()]
        yield from _first(lines, False, indent=f"{asset}: ")


def _keys(keys: Sequence[str]) -> str:
    """The partitions of a line; empty for an asset without any."""
    if keys == [""]:
        return ""
    return f" ({keys[0]})" if len(keys) == 1 else f" ({len(keys)}: {keys[0]}, … {keys[-1]})"


def _first(lines: Sequence[str], everything: bool, indent: str = "") -> list[str]:
    """The lines, or the first of them and how many more there are."""
    if everything or len(lines) <= SHOWN:
        return list(lines)
    return [*lines[:SHOWN], f"{indent}… {len(lines) - SHOWN} more (plumbline status --all)"]


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _stages(count: int) -> str:
    return "1 stage" if count == 1 else f"{count} stages"


def _unregistered(root: Path) -> list[str]:
    """The evaluated pairs without a registered version; none if MLflow does not answer, which is said."""
    from plumbline.tracking.restoration import unregistered
    from plumbline.tracking.store import TrackingError

    try:
        return list(unregistered(root))
    except TrackingError as error:
        click.echo(f"registry: not checked: {error}")
        return []


COMMANDS = (status,)
