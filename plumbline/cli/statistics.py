"""`plumbline update-statistics`: statistics of a changed calibration set from those of the set before."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from plumbline.workspace import workspace_root


@click.command()
@click.argument("previous")
@click.argument("choice")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def update_statistics(previous: str, choice: str, out: Path) -> None:
    """Statistics of CHOICE from those of PREVIOUS, by forward passes over the samples alone that differ.

    PREVIOUS and CHOICE are calibration choices, PREVIOUS one whose statistics are in data/activation_stats. OUT is a
    folder outside of data/. Sums differ in their last bits from a collection of the whole set, everything else is the
    same; so the pipeline itself always collects anew.

    \b
    Example: plumbline update-statistics random-64 stratified-64 /tmp/statistics
    """
    from plumbline.activation_stats.update import update
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.params import load_params

    root, folder = workspace_root(), out.resolve()
    data = root / "data"
    if data in (folder, *folder.parents):
        raise click.ClickException(f"{out} is in data/, which belongs to the pipeline; give a folder of your own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            sets = data / "calibration_set"
            statistics, base = data / "activation_stats" / previous, BaseCheckpoint.of(load_params(root).model, root)
            counts = update(statistics, sets / previous, sets / choice, base, Path(scratch))
            for path in sorted(Path(scratch).iterdir()):
                path.replace(folder / path.name)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {counts['left']} samples left, {counts['came']} came, {counts['stayed']} stayed")


COMMANDS = (update_statistics,)
