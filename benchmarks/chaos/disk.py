"""A disk that is full: the run says so, and goes on once there is room."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.chaos.processes import RUN, ran
from benchmarks.chaos.small import differences

ROOM = 256 << 10
"""KiB of the disk once there is room again."""


class NoDisk(RuntimeError):
    """This machine lets nobody mount a small disk; the message says why."""


@contextmanager
def small_disk(place: Path, kib: int) -> Iterator[Path]:
    """A disk of so many KiB, in memory.

    Raises:
        NoDisk: it cannot be mounted, which only root may.
    """
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        raise NoDisk(f"no small disk can be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def enlarge(place: Path) -> None:
    """Make room on a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={ROOM}k", str(place)], check=True)


def used(folder: Path) -> int:
    """KiB of disk that a folder takes."""
    return sum(path.lstat().st_blocks for path in folder.rglob("*")) // 2 + 64


def wrong_on_a_full_disk(start: Path, scratch: Path, kib: int, expected: dict[str, str]) -> list[str]:
    """Run in a workspace on a disk with room for `kib` more than the workspace; then make room and run again."""
    with small_disk(scratch / "disk", used(start) + kib) as disk:
        root = disk / "workspace"
        shutil.copytree(start, root, symlinks=True)
        full = ran(root, *RUN, status=1)
        wrong = [] if "disk" in full.output and "is full" in full.output else [f"it only says: {full.tail}"]
        ran(root, "plumbline", "status", status=1)
        enlarge(disk)
        ran(root, *RUN)
        return wrong + differences(root, expected)
