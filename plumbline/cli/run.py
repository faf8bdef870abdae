"""`plumbline run`, `study` and `status`: bring the graph up to date, and list what is out of date."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from plumbline.workspace import workspace_root

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C stopped."""


@click.command()
@click.option("--only", multiple=True, metavar="ASSET", help="Only this asset (repeatable).")
def run(only: tuple[str, ...]) -> None:
    """Materialize what is missing or out of date, then show the results.

    \b
    Example: plumbline run --only raw_corpus --only tokenized_samples
    """
    root, started = workspace_root(), time.perf_counter()
    steps = _run(root, only)
    seconds = time.perf_counter() - started
    click.echo(_took(steps, seconds))
    if (root / "data" / "calibration_report" / "table.json").is_file():
        from plumbline.cli.summary import show

        show(root)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
def study(names: tuple[str, ...]) -> None:
    """Compare calibration strategies over sizes, draws and schemes, with confidence intervals.

    NAME is an entry under `studies:` in params.yaml; default: all. A study takes many minutes; an interrupted one is
    resumed.

    \b
    Example: plumbline study strategies
    """
    from plumbline.params import load_params
    from plumbline.requested import request

    root, started = workspace_root(), time.perf_counter()
    try:
        studies = names or tuple(load_params(root).studies)
        if not studies:
            raise ValueError(f"{root / 'params.yaml'}: nothing under `studies:`; add an entry")
        request(studies, root)  # before the graph is loaded: requested studies are partitions of it

        from plumbline.graph.run import with_upstream
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    steps = _run(root, with_upstream(root, "study"))
    seconds = time.perf_counter() - started
    click.echo(_took(steps, seconds))
    from plumbline.cli.summary import show_study

    for name in studies:
        show_study(root, name)


@click.command()
def status() -> None:
    """List what is out of date, and why. Exit status 1 if anything is.

    \b
    Example: plumbline status || plumbline run
    """
    from plumbline.graph.intake import waiting
    from plumbline.versioning.pipeline import on_request
    from plumbline.versioning.status import changed_stages, leftovers

    root = workspace_root()
    new = waiting(root).as_dict()
    for name in new.get("waiting", []):
        click.echo(f"inbox: {name} is not in the corpus yet")
    for name in new.get("removed", []):
        click.echo(f"inbox: {name} was deleted, but is still in the corpus")
    changed = changed_stages(root)
    for name, reasons in changed.items():
        click.echo(f"{name}\n    " + "\n    ".join(reasons))
    lost = _unregistered(root)
    for name in lost:
        click.echo(f"registry: {name} is evaluated, but has no version")
    stale = f"{len(changed)} stages out of date: plumbline run" if changed else ""
    others = "the inbox has changes: plumbline run" if new else "the registry lacks versions: plumbline run"
    click.echo(stale or (others if new or lost else "everything is up to date"))
    if names := on_request(root):
        for name, why in changed_stages(root, *names).items():
            click.echo(f"on request (plumbline study): {name}\n    " + "\n    ".join(why))
    if left := leftovers(root):
        click.echo("\nunder data/, but no longer in params.yaml; nothing reads them:")
        click.echo("\n".join(f"  rm -r {shlex.quote(path)}" for path in left))
    sys.exit(1 if changed or new or lost else 0)


def _unregistered(root: Path) -> list[str]:
    """The evaluated pairs without a registered version; none if MLflow does not answer, which is said."""
    from plumbline.tracking.restoration import unregistered
    from plumbline.tracking.store import TrackingError

    try:
        return list(unregistered(root))
    except TrackingError as error:
        click.echo(f"registry: not checked: {error}")
        return []


def _run(root: Path, only: Sequence[str]) -> int:
    """Run the graph and return the number of steps; errors become messages."""
    from plumbline.graph.run import Interrupted, RunFailed, run_graph

    try:
        return run_graph(root, only, click.echo)
    except (Interrupted, KeyboardInterrupt) as error:
        click.echo(f"\n{str(error) or 'stopped. Nothing was lost: `plumbline run` continues'}", err=True)
        sys.exit(INTERRUPTED)
    except (RunFailed, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _took(steps: int, seconds: float) -> str:
    if not steps:
        return f"everything is up to date ({seconds:.1f} s)\n"
    return f"{steps} {'step' if steps == 1 else 'steps'} in {seconds:.0f} s\n"


COMMANDS = (run, study, status)
