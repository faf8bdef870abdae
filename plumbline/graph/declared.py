"""Whether dvc.yaml lists what a step reads."""

from __future__ import annotations

from collections.abc import Mapping

from plumbline.versioning.recording import Step


def require_declared(step: Step, paths: Mapping[str, str]) -> None:
    """Refuse a path that params.yaml names and that is no dependency: neither door would notice that it changed.

    Args:
        paths: what names it -> the path, absolute or relative to the workspace.

    Raises:
        ValueError: names the line to add.
    """
    declared = [(step.root / path).resolve() for path in step.inputs]
    for what, path in paths.items():
        place = (step.root / path).resolve()
        if not any(place == dependency or dependency in place.parents for dependency in declared):
            stage = step.name.split("@")[0]
            raise ValueError(
                f"{what} reads {path}, which dvc.yaml does not list: add it to the deps of {stage} there "
                f"(deps: [..., {path}]), so that a change of it is seen"
            )
