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
from plumbline.versioning.config import require_git_or_no_scm
from plumbline.versioning.garbage import project_of
from plumbline.versioning.remote import default_remote


def push(root: Path, hashes: Collection[str]) -> None:
    """Push what dvc.lock names, DVC's records of runs, and the artifacts with these hashes.

    Those that the cache lacks are on the remote already, or lost.

    Raises:
        RuntimeError: there is no remote, or DVC failed, with its message.
    """
    remote = default_remote(root)
    if remote is None:
        raise RuntimeError("DVC has no remote: name one in params.yaml, `storage: {remote: s3://bucket/prefix}`")
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
        raise RuntimeError(f"dvc {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
