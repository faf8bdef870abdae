"""Bring to DVC's remote what the workspace and its registered models rest on.

`dvc push` brings only what dvc.lock names now. The champion is often older, and its content would then be on one
machine alone. As for garbage collection, a temporary DVC project that shares the cache names its hashes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from plumbline.versioning.cache import cache_folder, cached
from plumbline.versioning.config import remote_conflict, require_git_or_no_scm, use_remote
from plumbline.versioning.garbage import project_of
from plumbline.versioning.remote import default_remote


def push(root: Path, hashes: Collection[str], storage: str | None = None) -> None:
    """Push what dvc.lock names, DVC's records of runs, and the artifacts with these hashes.

    Those that the cache lacks are on the remote already, or lost.

    Args:
        storage: `storage.remote` of params.yaml, which becomes DVC's default remote.

    Raises:
        RuntimeError: there is no remote, it cannot be used, or DVC failed, with its message.
    """
    if storage:
        use_remote(root, storage)
    remote = default_remote(root)
    if remote is None:
        raise RuntimeError("DVC has no remote: name one in params.yaml, `storage: {remote: s3://bucket/prefix}`")
    if problem := (storage and remote_conflict(root, storage)) or remote.problem():
        raise RuntimeError(problem)
    require_git_or_no_scm(root)
    _dvc(root, ["push", "--run-cache"])
    with tempfile.TemporaryDirectory(prefix="plumbline-push.") as name:
        project = Path(name)
        project_of(project, cache_folder(root).parents[1], [md5 for md5 in hashes if cached(root, md5)])
        from dvc.config import Config

        with Config(str(project / ".dvc")).edit("repo") as config:
            config["remote"][remote.name] = {"url": remote.url, **remote.options}
            config["core"]["remote"] = remote.name
        _dvc(project, ["push"])


def _dvc(folder: Path, arguments: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).partition("Having any troubles?")[0].strip()
        raise RuntimeError(f"dvc {' '.join(arguments)}: {said}")
