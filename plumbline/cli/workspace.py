"""`plumbline init`: creates a workspace."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from string import Template

import click
import yaml

from plumbline import distribution
from plumbline.versioning.config import require_git_or_no_scm
from plumbline.versioning.current_facts import link_inputs
from plumbline.versioning.writable import awkward
from plumbline.workspace_template import files_of, template_root

README = Path(__file__).with_name("workspace.md")
PYPROJECT = """\
# Dagster reads this file to load the graph; `pip install .` installs the dependencies.
[project]
name = "$project-workspace"
version = "0"
requires-python = ">=3.11"
dependencies = ["$distribution>=$version"]

[tool.setuptools]
py-modules = []                    # the workspace itself is not installed

[tool.dagster]
module_name = "orchestration.definitions"
code_location_name = "$location"
"""
OWN = {".git"}
"""Entries that the folder of a new workspace may already have."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def init(folder: Path) -> None:
    """Create a workspace in DIR: the graph, its settings and params.yaml, for you to edit.

    DIR must not exist, or be empty except for .git.

    \b
    Example: plumbline init calibration && cd calibration && plumbline run
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if in_the_way := [name for name in names if name not in OWN]:
        shown = ", ".join(in_the_way[:5]) + (" …" if len(in_the_way) > 5 else "")
        raise click.ClickException(f"{folder} is not empty ({shown}); name an empty folder or a new one")
    if problem := awkward(folder.resolve()):
        raise click.ClickException(problem)
    write_workspace(folder)
    require_git_or_no_scm(folder.resolve())  # these two, as `dvc repro` may come first
    link_inputs(folder.resolve())
    click.echo(next_steps(folder))


def write_workspace(folder: Path) -> None:
    """Write the files of a workspace.

    Raises:
        FileNotFoundError: the installed package lacks a file.
    """
    from plumbline.raw_corpus.intake import HEADER as INTAKE_HEADER
    from plumbline.raw_corpus.intake import INTAKE
    from plumbline.requested import HEADER, REQUESTED

    source = template_root()
    for name in files_of(source):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
    location = folder.resolve().name
    values = {
        "location": re.sub(r"[^\w.-]+", "-", location) or "workspace",
        "project": re.sub(r"[^a-z0-9]+", "-", location.lower()).strip("-") or "workspace",
        "distribution": distribution.NAME,
        "version": "0" if (version := distribution.version()) == "unknown" else version,
    }
    texts = {
        "pyproject.toml": Template(PYPROJECT).substitute(values),
        "README.md": Template(README.read_text(encoding="utf-8")).substitute(values),
        # The template is the repository's own workspace, which may list inbox files and studies; a new one lists none.
        INTAKE: INTAKE_HEADER + yaml.safe_dump({"files": {}, "revisions": {}}),
        REQUESTED: HEADER + yaml.safe_dump({"requested": []}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def next_steps(folder: Path) -> str:
    """The text that `plumbline init` prints."""
    steps = [] if folder.resolve() == Path.cwd() else [f"  cd {shlex.quote(str(folder))}"]
    if not (folder / ".git").exists():
        steps.append("  git init         to version it; optional")
    steps.append("  plumbline run    build the graph for the bundled model and texts; takes minutes")
    steps.append("  plumbline ui     the graph in a browser")
    last = "Then put your model and your texts into params.yaml."
    return "\n".join([f"{folder} is a workspace; README.md describes its files. Next:", *steps, last])
