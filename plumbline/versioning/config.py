"""What DVC itself does with its configuration: write it, and ask remotes that only it can read."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from plumbline.versioning.settings import absolute, default_remote_section, settings


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


REMOTE = "plumbline"
"""Name of the DVC remote that `storage.remote` of params.yaml sets."""


def use_remote(root: Path, url: str) -> bool:
    """Make a URL or folder DVC's default remote, in .dvc/config, which a team versions; returns whether it was not.

    Nothing is changed where `remote_conflict` has a reason, or without a DVC project.

    Raises:
        UnreadableConfig: DVC's configuration cannot be read.
    """
    if _default_remote(root)[1] == absolute(root, url) or remote_conflict(root, url) or not (root / ".dvc").is_dir():
        return False
    from dvc.config import Config

    with Config(str(root / ".dvc")).edit("repo") as config:
        config["remote"][REMOTE] = {"url": absolute(root, url)}
        config["core"]["remote"] = REMOTE
    return True


def remote_conflict(root: Path, url: str) -> str:
    """The reason why a URL cannot become DVC's default remote: somebody named another; empty without one.

    Raises:
        UnreadableConfig: DVC's configuration cannot be read.
    """
    name, current = _default_remote(root)
    if name in ("", REMOTE) or current == absolute(root, url):
        return ""
    return (
        f"storage.remote: found {url}, but DVC's default remote {name!r} is {current or 'not there'}; correct "
        "storage.remote in params.yaml, or unset the other with `dvc remote default --unset`"
    )


def _default_remote(root: Path) -> tuple[str, str]:
    name, section = default_remote_section(settings(root))
    return name, section.get("url", "")


def pull(root: Path, hashes: Collection[str]) -> None:
    """Download objects from the default remote into the cache, by DVC. Those that it lacks are skipped.

    Raises:
        OSError: the remote does not answer, or DVC is not installed.
    """
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc_data.hashfile.hash_info import HashInfo
    except ImportError as error:
        raise OSError("only DVC can read a remote of this kind, and it is not installed") from error
    for name in ("dvc", "dvc_data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with Repo(str(root), config={"core": {"no_scm": True}}) as repo:
            repo.cloud.pull([HashInfo("md5", md5) for md5 in hashes])
    except DvcException as error:
        raise OSError(str(error)) from error
