"""What dvc.yaml lists of the folders and files that params.yaml names, so that both doors see their changes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from plumbline.artifact import replace_text
from plumbline.params import Params, load_params
from plumbline.raw_corpus.intake import INTAKE
from plumbline.versioning.config import use_remote
from plumbline.versioning.facts import BASE_MODEL, FACTS
from plumbline.versioning.pipeline import FILE, definitions
from plumbline.versioning.recording import Step

CORPUS = "raw_corpus"
WIDTH = 4096
"""No line of dvc.yaml is wrapped."""


def named_inputs(params: Params) -> dict[str, dict[str, str]]:
    """Stage of dvc.yaml -> parameter -> the folder or file that it names, absolute or relative to the workspace."""
    template, items = params.model.chat_template, params.evaluation.items
    return {
        CORPUS: {name: str(Path(path).expanduser()) for name, path in params.corpus.folders().items()},
        FACTS[BASE_MODEL]: {"model.chat_template": template} if template else {},
        "evaluation": {"evaluation.items": items} if items else {},
    }


def declare(root: Path) -> list[str]:
    """Bring the `deps` of dvc.yaml and DVC's remote in line with params.yaml; returns a sentence per change.

    A folder or file that params.yaml names is added, if it exists. Removed is a folder of `raw_corpus` that no source
    reads any more, as the corpus must not depend on it, and a path that no longer exists and would make DVC fail.

    Raises:
        ValueError: params.yaml or dvc.yaml is invalid.
        OSError: dvc.yaml cannot be written.
    """
    params = load_params(root)
    wanted = named_inputs(params)
    changes = {}
    for stage, body in definitions(root).items():
        if stage in wanted:
            changes[stage] = _changes(root, stage, [str(path) for path in body.get("deps") or ()], wanted[stage])
    changes = {stage: change for stage, change in changes.items() if any(change)}
    if changes:
        _write(root / FILE, changes)
    sentences = [_sentence(stage, *change) for stage, change in changes.items()]
    if params.storage.remote and use_remote(root, params.storage.remote):
        sentences.append(f".dvc/config: DVC's default remote is now {params.storage.remote}, as storage.remote says")
    return sentences


def _changes(root: Path, stage: str, deps: list[str], named: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The paths to add to a stage's deps, and those to remove."""
    present = [path for path in named.values() if (root / path).exists()]
    added = list(dict.fromkeys(path for path in present if not _covered(root, path, deps)))
    wanted = [(root / path).resolve() for path in named.values()]

    def is_idle(dep: str) -> bool:
        path = (root / dep).resolve()
        of_ours = "${" in dep or dep == INTAKE or Path(dep).parts[:1] in (("data",), (".plumbline",))
        if of_ours or any(path == target or path in target.parents for target in wanted):
            return False
        return not path.exists() or (stage == CORPUS and path.is_dir())

    return added, [dep for dep in deps if is_idle(dep)]


def _covered(root: Path, path: str, deps: Iterable[str]) -> bool:
    place = (root / path).resolve()
    return any(dep == place or dep in place.parents for dep in ((root / dep).resolve() for dep in deps))


def _write(path: Path, changes: Mapping[str, tuple[list[str], list[str]]]) -> None:
    """Replace dvc.yaml; comments, quotes and order stay."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(path.read_text(encoding="utf-8"))
    for stage, (added, removed) in changes.items():
        body = content["stages"][stage]
        deps = body.get("do", body).setdefault("deps", [])
        for dep in removed:
            deps.remove(dep)
        deps.extend(added)
    text = io.StringIO()
    yaml.dump(content, text)
    replace_text(path, text.getvalue())


def _sentence(stage: str, added: list[str], removed: list[str]) -> str:
    parts = [f"{what} {', '.join(paths)}" for what, paths in (("added", added), ("removed", removed)) if paths]
    return f"dvc.yaml, deps of {stage}: {'; '.join(parts)}, as params.yaml says"


def require_declared(step: Step, paths: Mapping[str, str]) -> None:
    """Require paths named in params.yaml to be dependencies in dvc.yaml; otherwise changes to them go unnoticed.

    Args:
        paths: parameter -> path, absolute or relative to the workspace.

    Raises:
        ValueError: a path is not listed; the message says what to do.
    """
    for problem in undeclared(step.root, step.name.split("@")[0], step.inputs, paths):
        raise ValueError(problem)


def undeclared(root: Path, stage: str, deps: Iterable[str], paths: Mapping[str, str]) -> list[str]:
    """A sentence for each path that is not among the dependencies of a stage.

    Args:
        deps: the stage's dependencies, relative to the root.
        paths: parameter -> path, absolute or relative to the root.
    """
    known = list(deps)
    return [
        f"{parameter} reads {path}, which dvc.yaml does not list under {stage}: `plumbline declare` adds it, so that "
        "changes to it are noticed"
        for parameter, path in paths.items()
        if not _covered(root, path, known)
    ]
