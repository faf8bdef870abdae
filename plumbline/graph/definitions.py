"""Loads the Dagster definitions of a workspace, which its pyproject.toml names."""

from __future__ import annotations

import importlib
import sys
import tomllib
from functools import lru_cache
from pathlib import Path

import dagster as dg

from plumbline.collector import collector_paused
from plumbline.versioning.pipeline import stage_names


@lru_cache(maxsize=1)
def load_definitions(root: Path) -> dg.Definitions:
    """Import the module that `[tool.dagster]` in pyproject.toml names, and return its definitions.

    Raises:
        ValueError: pyproject.toml names no module, or the module has no `defs`.
    """
    path = root / "pyproject.toml"
    settings = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    name = settings.get("tool", {}).get("dagster", {}).get("module_name")
    if not name:
        raise ValueError(f'{path}: expected [tool.dagster] with module_name = "orchestration.definitions"')
    if sys.path[0] != str(root):  # ahead of modules of the same name from another workspace
        sys.path.insert(0, str(root))
    with collector_paused():
        defs = getattr(importlib.import_module(name), "defs", None)
    if not isinstance(defs, dg.Definitions):
        raise ValueError(f"{path}: the module {name} that it names has no `defs` of type dagster.Definitions")
    return defs


def stage_assets(root: Path) -> list[dg.AssetsDefinition]:
    """The assets that have a stage in dvc.yaml, in its order: upstream first."""
    graph = load_definitions(root).resolve_asset_graph()
    assets = {key.to_user_string(): key for key in graph.executable_asset_keys}
    return [load_definitions(root).get_assets_def(assets[stage]) for stage in stage_names(root) if stage in assets]
