"""`plumbline init`: a new workspace, which its owner edits."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from string import Template

import click
import yaml

from plumbline import distribution
from plumbline.workspace_template import files_of, template_root

README = Path(__file__).with_name("workspace.md")
PYPROJECT = """\
# Dagster loads the graph from here; `pip install .` installs what it needs.
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
"""What a folder may hold that becomes a workspace."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def init(folder: Path) -> None:
    """Make DIR a workspace: the graph, its settings and params.yaml, which you edit from then on.

    DIR does not exist yet, is empty, or holds .git alone.

    \b
    Example: plumbline init calibration && cd calibration && plumbline run
    """
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if in_the_way := [name for name in there if name not in OWN]:
        shown = ", ".join(in_the_way[:5]) + (" …" if len(in_the_way) > 5 else "")
        raise click.ClickException(f"{folder} is not empty ({shown}); name an empty folder or a new one")
    write_workspace(folder)
    click.echo(next_steps(folder))


def write_workspace(folder: Path) -> None:
    """Write the files of a workspace.

    Raises:
        FileNotFoundError: the installed package lacks one of them.
    """
    from plumbline.params import HEADER, REQUESTED
    from plumbline.raw_corpus.intake import HEADER as INTAKE_HEADER
    from plumbline.raw_corpus.intake import INTAKE

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
        # The template's workspace may have taken in files and asked for studies; a new one has not.
        INTAKE: INTAKE_HEADER + yaml.safe_dump({"files": {}, "revisions": {}}),
        REQUESTED: HEADER + yaml.safe_dump({"requested": []}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def next_steps(folder: Path) -> str:
    """What to do with a new workspace."""
    steps = [] if folder.resolve() == Path.cwd() else [f"  cd {shlex.quote(str(folder))}"]
    if not (folder / ".git").exists():
        steps.append("  git init         to keep its history; Plumbline works without git, too")
    steps.append("  plumbline run    the whole graph on the bundled model and the standard library's texts, in minutes")
    steps.append("  plumbline ui     the graph in a browser")
    last = "Then put your model and your texts into params.yaml."
    return "\n".join([f"{folder} is a workspace; its README.md says what is where. Next:", *steps, last])
