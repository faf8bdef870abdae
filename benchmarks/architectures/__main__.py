"""`python -m benchmarks.architectures`: the tiny models of tests/architectures under every scheme.

Share is that of the weights outside embeddings, head, routers and towers which is stored as codes. `=` means: the
folder, loaded with transformers' defaults, gives the logits of the simulation bit for bit.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path

import click
import transformers

from benchmarks.architectures import peer, published, table
from tests.architectures.catalogue import CATALOGUE
from tests.architectures.cells import SCHEMES, Cell, cells


@click.command()
@click.argument("names", nargs=-1)
@click.option("--scheme", "schemes", multiple=True, type=click.Choice(tuple(SCHEMES)), help="Only this (repeatable).")
@click.option("--real", is_flag=True, help="Plan the schemes of params.yaml for published configurations instead.")
@click.option("--peer", "compared", is_flag=True, help="Quantize the folders with llm-compressor instead.")
def main(names: tuple[str, ...], schemes: tuple[str, ...], real: bool, compared: bool) -> None:
    """Print a row per architecture (NAMES: only these)."""
    known = published.PUBLISHED if real else CATALOGUE
    if unknown := sorted(set(names) - set(known)):
        raise click.ClickException(f"no {unknown[0]!r}; there: {', '.join(known)}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    if real:
        for line in published.lines(names or tuple(known)):
            click.echo(line)
    elif compared:
        for line in peer.lines(names or tuple(known)):
            click.echo(line)
    else:
        _print(names or tuple(known), schemes or tuple(SCHEMES))


def _print(names: tuple[str, ...], schemes: tuple[str, ...]) -> None:
    found: dict[str, dict[str, Cell]] = {}
    click.echo("\n".join(table.head(schemes)))
    for name in names:
        # progress bars go to stderr, several per model
        with tempfile.TemporaryDirectory() as work, contextlib.redirect_stderr(io.StringIO()):
            entries = {scheme: SCHEMES[scheme] for scheme in schemes}
            found[name] = dict(cells(CATALOGUE[name], entries, Path(work)))
        click.echo(table.row(name, found[name], schemes))
    click.echo("\n".join(["", table.totals(found), "", *table.reasons(found)]))


if __name__ == "__main__":
    main()
