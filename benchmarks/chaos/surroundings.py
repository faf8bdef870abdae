"""Other surroundings of a run: path, home, locale, umask, time zone, hash seed, cache type. The bytes are the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos.processes import RUN, environment, ran
from benchmarks.chaos.small import differences

FOLDER = "Größe & 模型 $x 'y' (z)"
"""Spaces, letters of other alphabets, and what a shell would expand."""
VARIABLES = {"LC_ALL": "C", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "XDG_CACHE_HOME": ""}
DROPPED = "-dac_override,-dac_read_search"
"""Capabilities of root: without them file modes bind root, too."""


def bound_by_modes() -> list[str]:
    """What to put before a command so that it may not write where file modes forbid it; empty for users but root."""
    return ["setpriv", "--bounding-set", DROPPED, "--inh-caps", DROPPED] if os.geteuid() == 0 else []


def wrong_elsewhere(start: Path, scratch: Path, expected: dict[str, str]) -> list[str]:
    """Run at a path with spaces, with a home that cannot be written, another locale, umask, time zone, hash seed."""
    home, root = scratch / "home", scratch / FOLDER / "wörk space"
    home.mkdir(parents=True)
    home.chmod(0o555)
    shutil.copytree(start, root, symlinks=True)
    command = [*bound_by_modes(), sys.executable, "-m", "plumbline.cli.main", "run"]
    done = subprocess.run(
        command,
        cwd=root,
        env=environment(root, HOME=str(home), **VARIABLES),
        umask=0o077,
        capture_output=True,
        text=True,
    )
    if done.returncode or "Traceback" in done.stderr:
        return [f"it ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}"]
    return differences(root, expected)


def wrong_with_cache(start: Path, place: Path, kind: str, expected: dict[str, str]) -> list[str]:
    """Run with another `cache.type`, and check the outputs out anew."""
    shutil.copytree(start, place, symlinks=True)
    ran(place, "dvc", "config", "cache.type", kind)
    ran(place, *RUN)
    ran(place, "dvc", "checkout", "--relink")
    return differences(place, expected)


def wrong_with_a_readonly_cache(finished: Path, place: Path) -> list[str]:
    """Start a run that would have to write into a cache of somebody else."""
    shutil.copytree(finished, place, symlinks=True)
    params = place / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("resamples: 100", "resamples: 101"), encoding="utf-8")
    cache = place / ".dvc/cache"
    for folder in [cache, *(path for path in cache.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    command = [*bound_by_modes(), sys.executable, "-m", "plumbline.cli.main"]
    wrong = []
    for arguments, status, word in ((("status",), 1, "out of date"), (("run",), 1, "DVC's cache cannot be written")):
        done = subprocess.run([*command, *arguments], cwd=place, env=environment(place), capture_output=True, text=True)
        if done.returncode != status or word not in done.stdout + done.stderr:
            wrong.append(f"{arguments[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
    for folder in [cache, *(path for path in cache.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    ran(place, *RUN)
    return wrong
