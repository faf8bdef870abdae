"""DVC's configuration, read and written through DVC's API."""

from __future__ import annotations

import logging
from pathlib import Path


def require_git_or_no_scm(root: Path) -> None:
    """Set DVC's `core.no_scm` in a workspace without git, such as an archive; DVC fails there without it."""
    in_git = any((folder / ".git").exists() for folder in (root, *root.parents))
    if in_git or not (root / ".dvc").is_dir():
        return
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    if not config["core"].get("no_scm"):
        with config.edit("local") as local:
            local.setdefault("core", {})["no_scm"] = True


def new_project(folder: Path, cache: Path | None = None) -> None:
    """Initialise a DVC project without git in an existing folder.

    Args:
        cache: a shared cache. None: its own.
    """
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)  # DVC announces the project on stdout, amid a command's JSON
    with Repo.init(str(folder), no_scm=True) as repo, repo.config.edit("repo") as config:
        config["core"]["analytics"] = False
        config["cache"] = {"dir": str(cache)} if cache else {"type": ["reflink", "hardlink", "copy"]}
