"""Collecting garbage in DVC's cache without losing what a registered model rests on.

`dvc gc -w` keeps what dvc.lock names now. The champion is often older than that, and so is the one that `plumbline
rollback` brings back: their weights, sets and statistics would be gone. Here DVC is told of them the way it is told of
other projects that share a cache (`--projects`): a project made for the moment, which names their hashes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

from plumbline.versioning.content import HASH, cache_folder


def collect(root: Path, hashes: Collection[str], options: Sequence[str] = ()) -> str:
    """Run `dvc gc -w` with these hashes kept, too; returns what DVC said.

    Args:
        options: further ones of `dvc gc`, such as `--cloud` or `--dry`.

    Raises:
        RuntimeError: DVC failed; the message is its own.
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
    """A DVC project without data, whose outputs are the hashes."""
    (folder / ".dvc").mkdir()
    config = f"[core]\n    no_scm = true\n    analytics = false\n[cache]\n    dir = {cache.resolve()}\n"
    (folder / ".dvc" / "config").write_text(config, encoding="utf-8")
    for md5 in sorted(hashes):
        if not HASH.fullmatch(md5):
            raise RuntimeError(f"the registry names {md5!r}, which is no DVC hash; nothing was deleted")
        out = {"md5": md5, "hash": "md5", "path": md5.removesuffix(".dir")}
        (folder / f"{out['path']}.dvc").write_text(yaml.safe_dump({"outs": [out]}), encoding="utf-8")
