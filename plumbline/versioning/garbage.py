"""Garbage collection in DVC's cache that keeps the inputs of registered models.

`dvc gc -w` keeps only what dvc.lock names now. The champion is often older, and so is the model that `plumbline
rollback` restores: `dvc gc -w` would delete their weights, sets and statistics. A temporary DVC project names their
hashes here. DVC keeps them because `--projects` lists it among the projects that share the cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from plumbline.versioning.cache import cache_folder
from plumbline.versioning.config import new_project, require_git_or_no_scm
from plumbline.versioning.digest import HASH
from plumbline.versioning.run_history import History

DRY = "Removing "
"""`dvc gc --dry` writes a line with this prefix per object."""


@dataclass(frozen=True)
class Garbage:
    """What `collect` would delete."""

    objects: tuple[str, ...]
    """Paths in the cache, and in the remote."""
    bytes: int
    """Of those in the cache."""
    artifacts: tuple[str, ...]
    """Paths in the workspace of the artifacts among them, as DVC's records name them; sorted, doubled per version."""


def garbage(root: Path, hashes: Collection[str], options: Sequence[str] = (), projects: Sequence[Path] = ()) -> Garbage:
    """What `collect` would delete with the same arguments; nothing is deleted. Raises as `collect`."""
    output = _dvc_gc(root, hashes, [*options, "--dry"], projects)
    objects = tuple(line.removeprefix(DRY) for line in output.splitlines() if line.startswith(DRY))
    files = [path for name in objects if (path := Path(name)).is_file()]
    history = History(root)
    listings = (f"{path.parent.name}{path.name}" for path in map(Path, objects) if path.suffix == ".dir")
    runs = ((md5, entry) for md5 in listings if (entry := history.maker(md5)))
    artifacts = [path for md5, entry in runs for path, holds in entry.outs.items() if holds == md5]
    return Garbage(objects, sum(path.stat().st_size for path in files), tuple(sorted(artifacts)))


def collect(root: Path, hashes: Collection[str], options: Sequence[str] = (), projects: Sequence[Path] = ()) -> str:
    """Run `dvc gc -w`, keep these hashes as well, and return DVC's summary.

    Args:
        options: further options of `dvc gc`, such as `--cloud`.
        projects: other DVC projects that use the cache; what they name is kept, too.

    Raises:
        RuntimeError: DVC failed, with DVC's message; or a hash is malformed.
    """
    output = _dvc_gc(root, hashes, options, projects)
    return "\n".join(line for line in output.splitlines() if line.startswith(("Removed", "No unused")))


def upstream_hashes(root: Path, models: Iterable[str]) -> frozenset[str]:
    """The hashes of models and of all that DVC's records say they were made from."""
    history, hashes = History(root), set()
    for md5 in models:
        hashes.add(md5)
        for entry in history.ancestry(md5).values():
            hashes |= {*entry.outs.values(), *(holds for path, holds in entry.deps.items() if path.startswith("data/"))}
    return frozenset(md5 for md5 in hashes if HASH.fullmatch(md5))


def _dvc_gc(root: Path, hashes: Collection[str], options: Sequence[str], projects: Sequence[Path]) -> str:
    require_git_or_no_scm(root)
    with tempfile.TemporaryDirectory(prefix="plumbline-gc.") as name:
        project = Path(name)
        project_of(project, cache_folder(root).parents[1], hashes)
        sharing = [str(path.resolve()) for path in (project, *projects)]
        command = [sys.executable, "-m", "dvc", "gc", "--workspace", "--force", "--projects", *sharing, *options]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"dvc gc: {(done.stderr or done.stdout).strip()}; nothing that is registered was deleted")
    return done.stdout + done.stderr


def project_of(folder: Path, cache: Path, hashes: Collection[str]) -> None:
    """Create a DVC project without data whose outputs have these hashes."""
    new_project(folder, cache.resolve())
    for md5 in sorted(hashes):
        if not HASH.fullmatch(md5):
            raise RuntimeError(f"the registry names {md5!r}, which is no DVC hash; nothing was deleted")
        out = {"md5": md5, "hash": "md5", "path": md5.removesuffix(".dir")}
        (folder / f"{out['path']}.dvc").write_text(yaml.safe_dump({"outs": [out]}), encoding="utf-8")
