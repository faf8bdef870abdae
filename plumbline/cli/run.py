"""`plumbline run` and `study`: bring the graph up to date."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.graph.forecast import Forecast

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C stopped."""


@click.command()
@click.option("--only", multiple=True, metavar="ASSET", help="Only this asset (repeatable).")
@click.option("--plan", "only_plan", is_flag=True, help="Say what a run would do and need, and do nothing.")
def run(only: tuple[str, ...], only_plan: bool) -> None:
    """Bring every artifact up to date, then show the table.

    Before much work it says what it will do, and how long that takes on this machine, measured within seconds. --plan
    says it in full: steps, forward passes, seconds, memory and disk.

    \b
    Example: plumbline run --plan
             plumbline run --only raw_corpus --only tokenized_samples
    """
    root, started = workspace_root(), time.perf_counter()
    expected = _forecast(root, only, only_plan)
    if only_plan:
        return
    steps = _run(root, only, expected)
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


MANY = 8
"""A run of more steps says before it starts what it will do."""


def _forecast(root: Path, only: Sequence[str], in_full: bool) -> Forecast | None:
    """Print what a run would do, if it is much or asked for, and return it."""
    from plumbline.graph.declared import declare
    from plumbline.graph.run import require_assets

    try:
        require_assets(root, only)
        if not in_full:
            for change in declare(root):
                click.echo(change)
        return forecast_said(root, only, in_full)
    except (ValueError, OSError) as error:
        if in_full:
            raise click.ClickException(str(error)) from error
        return None  # the run itself says what is wrong, with everything else that is


def forecast_said(root: Path, only: Sequence[str], in_full: bool) -> Forecast | None:
    """As `_forecast`, with its errors."""
    from plumbline.graph.forecast import forecast, stages_of_run
    from plumbline.graph.preflight import problems

    stages = stages_of_run(root, only)
    if not in_full and len(stages) <= MANY:
        return None
    found = list(dict.fromkeys(problems(root, [stage.name for stage in stages])))
    if found and in_full:
        raise ValueError("a run would fail:\n" + "\n".join(f"- {line}" for line in found))
    if found:
        return None
    expected = forecast(root, only)
    from plumbline.cli.forecast_text import in_short, table

    if expected is None:
        click.echo("everything is up to date: nothing to do")
    else:
        click.echo(table(expected) if in_full else in_short(expected))
    return expected


def _run(root: Path, only: Sequence[str], expected: Forecast | None = None) -> int:
    """Run the graph and return the number of steps; errors become messages."""
    from plumbline.graph.run import Interrupted, RunFailed, run_graph

    try:
        return run_graph(root, only, click.echo, expected)
    except (Interrupted, KeyboardInterrupt) as error:
        click.echo(f"\n{str(error) or 'stopped. Nothing was lost: `plumbline run` continues'}", err=True)
        sys.exit(INTERRUPTED)
    except (RunFailed, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _took(steps: int, seconds: float) -> str:
    if not steps:
        return f"everything is up to date ({seconds:.1f} s)\n"
    return f"{steps} {'step' if steps == 1 else 'steps'} in {seconds:.0f} s\n"


COMMANDS = (run, study)
