"""DVC's configuration, read and changed by DVC itself."""

from __future__ import annotations

from pathlib import Path


def require_git_or_no_scm(root: Path) -> None:
    """Let DVC work in a workspace without git (an archive): it then needs to be told so."""
    in_git = any((folder / ".git").exists() for folder in (root, *root.parents))
    if in_git or not (root / ".dvc").is_dir():
        return
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    if not config["core"].get("no_scm"):
        with config.edit("local") as local:
            local.setdefault("core", {})["no_scm"] = True


def new_project(folder: Path, cache: Path | None = None) -> None:
    """Make an existing folder a DVC project without git.

    Args:
        cache: a cache to share. None: one of its own.
    """
    from dvc.repo import Repo

    with Repo.init(str(folder), no_scm=True) as repo, repo.config.edit("repo") as config:
        config["core"]["analytics"] = False
        config["cache"] = {"dir": str(cache)} if cache else {"type": ["reflink", "hardlink", "copy"]}
