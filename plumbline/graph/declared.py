"""Checks that dvc.yaml lists what a step reads."""

from __future__ import annotations

from collections.abc import Mapping

from plumbline.versioning.recording import Step


def require_declared(step: Step, paths: Mapping[str, str]) -> None:
    """Require paths named in params.yaml to be dependencies in dvc.yaml; otherwise changes to them go unnoticed.

    Args:
        paths: parameter -> path, absolute or relative to the workspace.

    Raises:
        ValueError: a path is not listed; the message says what to add.
    """
    declared = [(step.root / path).resolve() for path in step.inputs]
    for parameter, path in paths.items():
        resolved = (step.root / path).resolve()
        if not any(resolved == dependency or dependency in resolved.parents for dependency in declared):
            stage = step.name.split("@")[0]
            raise ValueError(
                f"{parameter} reads {path}, which dvc.yaml does not list: add it to the deps of {stage} there "
                f"(deps: [..., {path}]), so that changes to it are noticed"
            )
