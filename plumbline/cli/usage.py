"""Errors of a command's arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Convert errors to usage errors: one sentence and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
