"""Checks that dvc.yaml lists what a step reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from plumbline.versioning.recording import Step


def require_declared(step: Step, paths: Mapping[str, str]) -> None:
    """Require paths named in params.yaml to be dependencies in dvc.yaml; otherwise changes to them go unnoticed.

    Args:
        paths: parameter -> path, absolute or relative to the workspace.

    Raises:
        ValueError: a path is not listed; the message says what to add.
    """
    for problem in undeclared(step.root, step.name.split("@")[0], step.inputs, paths):
        raise ValueError(problem)


def undeclared(root: Path, stage: str, deps: Iterable[str], paths: Mapping[str, str]) -> list[str]:
    """A sentence for each path that is not among the dependencies of a stage.

    Args:
        deps: the stage's dependencies, relative to the root.
        paths: parameter -> path, absolute or relative to the root.
    """
    declared = [(root / path).resolve() for path in deps]
    missing = {
        parameter: path
        for parameter, path in paths.items()
        if not any(known == (root / path).resolve() or known in (root / path).resolve().parents for known in declared)
    }
    return [
        f"{parameter} reads {path}, which dvc.yaml does not list: add it to the deps of {stage} there "
        f"(deps: [..., {path}]), so that changes to it are noticed"
        for parameter, path in missing.items()
    ]
