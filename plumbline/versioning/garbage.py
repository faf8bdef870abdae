"""Garbage collection in DVC's cache that keeps the inputs of registered models.

`dvc gc -w` keeps only what dvc.lock names now. The champion is often older, and so is the model that `plumbline
rollback` restores: `dvc gc -w` would delete their weights, sets and statistics. A temporary DVC project names their
hashes here. DVC keeps them because `--projects` lists it among the projects that share the cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

from plumbline.versioning.cache import cache_folder
from plumbline.versioning.config import new_project
from plumbline.versioning.digest import HASH


def collect(root: Path, hashes: Collection[str], options: Sequence[str] = ()) -> str:
    """Run `dvc gc -w`, keep these hashes as well, and return DVC's summary.

    Args:
        options: further options of `dvc gc`, such as `--cloud` or `--dry`.

    Raises:
        RuntimeError: DVC failed, with DVC's message; or a hash is malformed.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-gc.") as name:
        project = Path(name)
        _project(project, cache_folder(root).parents[1], hashes)
        command = [sys.executable, "-m", "dvc", "gc", "--workspace", "--force", "--projects", name, *options]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"dvc gc: {(done.stderr or done.stdout).strip()}; nothing that is registered was deleted")
    said = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in said if line.startswith(("Removed", "No unused")))


def _project(folder: Path, cache: Path, hashes: Collection[str]) -> None:
    """Create a DVC project without data whose outputs have these hashes."""
    new_project(folder, cache.resolve())
    for md5 in sorted(hashes):
        if not HASH.fullmatch(md5):
            raise RuntimeError(f"the registry names {md5!r}, which is no DVC hash; nothing was deleted")
        out = {"md5": md5, "hash": "md5", "path": md5.removesuffix(".dir")}
        (folder / f"{out['path']}.dvc").write_text(yaml.safe_dump({"outs": [out]}), encoding="utf-8")
