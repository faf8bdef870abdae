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
from plumbline.base_model.chat_template import TEMPLATE_FILE
from plumbline.base_model.folder import BUNDLED
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
@click.option("--model", metavar="MODEL", help="Your base model: a folder, or a hub id.")
@click.option("--revision", metavar="COMMIT", help="Commit of a hub id; default: its newest one.")
@click.option("--corpus", type=click.Path(path_type=Path), metavar="PATH", help="Your texts or chats.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The Jinja template that is served, for a model without one.",
)
def init(
    folder: Path, model: str | None, revision: str | None, corpus: Path | None, chat_template: Path | None
) -> None:
    """Create a workspace in DIR: the graph, its settings and params.yaml.

    With --model and --corpus, params.yaml is written for your model and your texts, so that `plumbline run` gives a
    verdict on them; without, for the bundled ones. PATH is a folder with .txt, .md, .jsonl, .jsonl.gz or .parquet
    files, or one of them. DIR must not exist, or be empty except for .git.

    \b
    Example: plumbline init calibration && cd calibration && plumbline run
             plumbline init support --model /models/llama --corpus /data/chats
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if in_the_way := [name for name in names if name not in OWN]:
        shown = ", ".join(in_the_way[:5]) + (" …" if len(in_the_way) > 5 else "")
        raise click.ClickException(f"{folder} is not empty ({shown}); name an empty folder or a new one")
    if problem := awkward(folder.resolve()):
        raise click.ClickException(problem)
    if (model is None) != (corpus is None):
        raise click.ClickException("--model and --corpus go together; leave out both for the bundled model and texts")
    if model is None and (revision or chat_template):
        raise click.ClickException("--revision and --chat-template describe a --model; name it and its --corpus")
    try:
        own = None if model is None or corpus is None else of_own(model, revision, corpus, chat_template)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    write_workspace(folder, own)
    if chat_template is not None:
        shutil.copyfile(chat_template, folder / TEMPLATE_FILE)
    require_git_or_no_scm(folder.resolve())  # these two, as `dvc repro` may come first
    link_inputs(folder.resolve())
    if own is not None:
        from plumbline.graph.declared import declare

        declare(folder.resolve())
    click.echo(next_steps(folder, own))
    if own is not None and (left := problems_of(folder.resolve())):
        lines = "\n".join(f"- {problem}" for problem in left)
        raise click.ClickException(f"before `plumbline run`, mend this in {folder / 'params.yaml'}:\n{lines}")


def of_own(model: str, revision: str | None, corpus: Path, chat_template: Path | None) -> str:
    """The text of params.yaml for somebody's own model and corpus.

    Raises:
        ValueError: there is no such model, or the corpus has too few documents.
        OSError: the hub does not answer.
    """
    from plumbline.base_model.context import context_length
    from plumbline.cli.own_params import Own, count_documents, own_params

    if not corpus.exists():
        raise ValueError(f"--corpus {corpus}: no such folder or file; name the one that holds your texts or chats")
    place = Path(model).expanduser()
    context = None
    if place.is_dir():
        from plumbline.base_model.folder import require_weights

        require_weights(place)
        model, context = str(place.resolve()), context_length(place)
    elif model != BUNDLED.name:
        revision = revision or newest_commit(model)
    own = Own(
        model,
        revision,
        corpus.resolve(),
        count_documents(corpus.resolve()),
        context,
        None if chat_template is None else TEMPLATE_FILE,
    )
    return own_params((template_root() / "params.yaml").read_text(encoding="utf-8"), own)


def newest_commit(model: str) -> str:
    """The newest commit of a model on the hub, which pins it.

    Raises:
        ValueError: it is no hub id, or the hub does not answer or has no such model.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(model, timeout=20).sha)
    except Exception as error:  # of huggingface_hub and its HTTP client, which have no common class
        raise ValueError(
            f"--model {model}: no such folder, and the hub did not give a commit of such a model "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); correct the path, or name the commit "
            "with --revision"
        ) from error


def problems_of(root: Path) -> list[str]:
    """What would make the first run of a workspace fail."""
    from plumbline.graph.preflight import problems
    from plumbline.versioning.pipeline import on_request, resolved

    later = on_request(root)
    return list(dict.fromkeys(problems(root, [name for name, s in resolved(root).items() if s.asset not in later])))


def write_workspace(folder: Path, params: str | None = None) -> None:
    """Write the files of a workspace.

    Args:
        params: the text of params.yaml; None: that of the template.

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
    if params is not None:
        texts["params.yaml"] = params
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def next_steps(folder: Path, own: str | None = None) -> str:
    """The text that `plumbline init` prints.

    Args:
        own: the text of params.yaml for somebody's own model and corpus.
    """
    steps = [] if folder.resolve() == Path.cwd() else [f"  cd {shlex.quote(str(folder))}"]
    if not (folder / ".git").exists():
        steps.append("  git init                to version it; optional")
    what = "the bundled model and texts" if own is None else "your model and texts"
    steps.append("  plumbline run --plan    what a run would do, and how long it takes here")
    steps.append(f"  plumbline run           build the graph for {what}, then the verdict")
    steps.append("  plumbline ui            the graph in a browser")
    last = (
        "For your own model and texts: plumbline init DIR --model MODEL --corpus PATH, or edit params.yaml."
        if own is None
        else "params.yaml has the choices and schemes that are compared."
    )
    return "\n".join([f"{folder} is a workspace; README.md describes its files. Next:", *steps, last])
