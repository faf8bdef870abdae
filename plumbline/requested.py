"""The studies that `plumbline study` was asked for, in requested.yaml: stages and partitions of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from plumbline.params import load_params
from plumbline.study.params import require_read_together
from plumbline.workspace import workspace_root
from plumbline.yaml_file import read_yaml

REQUESTED = "requested.yaml"
HEADER = "# Entries of `studies:` in params.yaml that `plumbline study` was asked for; it writes this file.\n"


def requested(root: Path | None = None) -> list[str]:
    """The requested studies, in order, from requested.yaml, which DVC reads too.

    Raises:
        ValueError: the file is invalid.
    """
    path = (root or workspace_root()) / REQUESTED
    content = read_yaml(path).content if path.is_file() else None
    names = (content.get("requested") or []) if isinstance(content, dict) else content or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected `requested:` with a list of names, found {content!r:.80}; correct it")
    return names


def request(names: Sequence[str], root: Path | None = None) -> None:
    """Add studies to requested.yaml, which makes them stages and partitions of the graph.

    Raises:
        ValueError: params.yaml has no such study, or its `statistics` do not fit studies.
    """
    params = load_params(root)
    studies = params.studies
    if unknown := [name for name in names if name not in studies]:
        raise ValueError(f"studies: {unknown} not in params.yaml (there: {sorted(studies)})")
    for name in names:
        reads = {part for scheme in studies[name].schemes for part in params.schemes[scheme].reads}
        require_read_together(params.statistics, "histogram" in reads)
    before = requested(root)
    after = [name for name in dict.fromkeys([*before, *names]) if name in studies]
    if after != before:
        from plumbline.artifact import replace_text  # imported here to keep commands fast

        path = (root or workspace_root()) / REQUESTED
        replace_text(path, HEADER + yaml.safe_dump({"requested": after}, default_flow_style=None))
