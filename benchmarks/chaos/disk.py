"""A disk that is full: the run says so, and goes on once there is room."""

from __future__ import annotations

import os
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
def small_disk(place: Path) -> Iterator[Path]:
    """A disk of its own, in memory, with room.

    Raises:
        NoDisk: it cannot be mounted, which only root may.
    """
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        raise NoDisk(f"no small disk can be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def leave_free(place: Path, kib: int) -> None:
    """Shrink the disk until it has so many KiB left."""
    status = os.statvfs(place)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize >> 10
    _resize(place, used + kib)


def enlarge(place: Path) -> None:
    """Make room on a small disk."""
    _resize(place, ROOM)


def _resize(place: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(place)], check=True)


def wrong_on_a_full_disk(start: Path, scratch: Path, kib: int, expected: dict[str, str]) -> list[str]:
    """Run in a workspace on a disk with room for `kib` more than the workspace; then make room and run again."""
    with small_disk(scratch / "disk") as disk:
        root = disk / "workspace"
        shutil.copytree(start, root, symlinks=True)
        leave_free(disk, kib)
        full = ran(root, *RUN, status=1)
        wrong = [] if "disk" in full.output and "is full" in full.output else [f"it only says: {full.tail}"]
        wrong += [f"a traceback: {full.tail}"] if "Traceback" in full.output else []
        ran(root, "plumbline", "status", status=1)
        enlarge(disk)
        ran(root, *RUN)
        return wrong + differences(root, expected)
