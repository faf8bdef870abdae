"""`plumbline`: the command line. Heavy packages are imported by the command that needs them."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from plumbline import distribution
from plumbline.cli import (
    audit,
    choices,
    export,
    gc,
    judge,
    maintain,
    plan,
    release,
    run,
    serve,
    serve_check,
    show,
    sign,
    stage,
    statistics,
    status,
    workspace,
)
from plumbline.cli.disk_full import advice, is_full
from plumbline.cli.sections import Sections
from plumbline.versioning.code import link_library
from plumbline.versioning.current_facts import link_inputs
from plumbline.versioning.facts import MODEL_LINK
from plumbline.workspace import VARIABLE, NoWorkspace, workspace_above, workspace_root

GROUPS = (
    run, status, choices, plan, show, judge, audit, sign, release, export, maintain, gc, serve, serve_check, stage,
    statistics,
)  # fmt: skip
"""Modules of the commands that act in a workspace; each lists its commands as COMMANDS."""
TRACEBACK = "PLUMBLINE_TRACEBACK"
ANYWHERE = ("init", "strategies", "judge", "engine", "serve-check")
"""Commands that need no workspace."""
ANYWHERE_WITH = {"audit": "explain"}
"""Commands that need none with this option."""


class OutsideWorkspace(click.ClickException):
    """The command is run outside of a workspace."""

    exit_code = 2


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-C",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help=f"The workspace (or {VARIABLE}); default: the one that contains the current folder.",
)
@click.version_option(distribution.version(), "--version", prog_name="plumbline", message="%(prog)s %(version)s")
def main(folder: Path | None) -> None:
    """Pick, prove and audit the calibration data of quantized language models."""
    if folder is not None:
        try:
            os.environ[VARIABLE] = str(workspace_above(folder))  # also for child processes and loaded definitions
        except NoWorkspace as error:
            raise OutsideWorkspace(str(error)) from error
    warnings.filterwarnings("ignore", category=FutureWarning)
    # tqdm reads these on import: progress bars appear only for long operations, and are updated rarely in log files.
    os.environ.setdefault("TQDM_DELAY", "2")
    os.environ.setdefault("TQDM_MININTERVAL", "0.2" if sys.stderr.isatty() else "20")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextlib.contextmanager
def _errors_as_sentences(root: Path) -> Iterator[None]:
    """End with the message of an error that a user can mend; with its traceback if PLUMBLINE_TRACEBACK is set."""
    try:
        yield
    except click.ClickException as error:
        if is_full(error, root):
            raise click.ClickException(f"{error.message}\n{advice(root)}") from error
        raise
    except Exception as error:
        if is_full(error, root) and not os.environ.get(TRACEBACK):
            raise click.ClickException(f"{error}\n{advice(root)}") from error
        from plumbline.versioning.recording import InputsChanged

        if not isinstance(error, (ValueError, OSError, InputsChanged)):
            raise
        if os.environ.get(TRACEBACK) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
            raise
        raise click.ClickException(str(error) or type(error).__name__) from error


def in_workspace(command: click.Command) -> click.Command:
    """Wrap a command so that it first finds its workspace; without one it fails with exit status 2.

    If the workspace is not the current folder, a line on stderr names it.
    """
    act = command.callback
    assert act is not None

    @functools.wraps(act)
    def act_in_workspace(*arguments: Any, **options: Any) -> Any:
        if options.get(ANYWHERE_WITH.get(command.name or "", "")):
            return act(*arguments, **options)
        try:
            root = workspace_root()
        except NoWorkspace as error:
            raise OutsideWorkspace(str(error)) from error
        if os.environ.get(VARIABLE):
            os.environ[VARIABLE] = str(root)  # absolute, for child processes in other folders
        if root != Path.cwd():
            click.echo(f"workspace: {root}", err=True)
        with contextlib.suppress(OSError, ValueError):  # a read-only workspace; an invalid params.yaml
            link_library(root)
            if not (root / MODEL_LINK).exists():
                link_inputs(root)
        with _errors_as_sentences(root):
            return act(*arguments, **options)

    command.callback = act_in_workspace
    return command


for command in (*(command for group in GROUPS for command in group.COMMANDS), workspace.init):
    main.add_command(command if command.name in ANYWHERE else in_workspace(command))


if __name__ == "__main__":
    main()
