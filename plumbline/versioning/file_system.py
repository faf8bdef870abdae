"""What the file system of a workspace does with file locks and SQLite, by which the runs of a workspace take turns.

Plumbline and DVC lock with `flock` and `fcntl`. On a local file system the kernel keeps the locks; over a network they
hold between machines only if the protocol carries them and the mount asks it to.
"""

from __future__ import annotations

import errno
import fcntl
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/mounts")
NFS = ("nfs", "nfs4")
CARRY_LOCKS = (*NFS, "lustre", "ceph", "gpfs", "beegfs", "glusterfs", "fuse.glusterfs", "ocfs2", "gfs2", "afs")
"""Types whose locks hold between machines, unless an option of the mount says otherwise."""
KEEP_LOCKS = ("cifs", "smb3", "smbfs", "9p", "virtiofs", "vboxsf", "prl_fs", "fuse.")
"""Types (or beginnings of types) that several machines may mount, whose locks each machine keeps to itself."""
WITHOUT_LOCKS = ("nolock", "local_lock=all", "local_lock=flock", "nolocks", "noflock", "localflock", "nobrl")
"""Options of a mount with which its locks stay on the machine."""


@dataclass(frozen=True)
class Mount:
    """A line of /proc/mounts."""

    place: str
    kind: str
    options: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether other machines may mount the same files."""
        return self.kind in CARRY_LOCKS or self.kind.startswith(KEEP_LOCKS)

    @property
    def carries_locks(self) -> bool:
        """Whether a lock holds between machines; only of a shared one."""
        return self.kind in CARRY_LOCKS and not {*self.options} & {*WITHOUT_LOCKS}


def mount_of(path: Path, table: str) -> Mount | None:
    """The mount that a path lies on; None if the table has none.

    Args:
        table: the text of /proc/mounts.
    """
    resolved, best = path.resolve(), None
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1])  # a space is \040
        if resolved.is_relative_to(place) and (best is None or len(place) >= len(best.place)):
            best = Mount(place, fields[2], tuple(fields[3].split(",")))
    return best


def cannot_lock(folder: Path) -> str:
    """A sentence if the file system of an existing folder refuses file locks; empty if it grants them."""
    path = folder / "probe.lock"
    try:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return (
                f"{folder} lies on a file system without file locks ({error.strerror}), by which runs take turns: "
                "mount it with locks (NFS: without `nolock`), or move the workspace to a local disk"
            )
    return ""


def lock_warnings(root: Path, tracking: str, table: str | None = None) -> Iterator[str]:
    """What to know before a second machine runs something in this workspace; nothing on a local file system.

    Args:
        tracking: URI of the MLflow store.
        table: the text of /proc/mounts; None: read it.
    """
    if table is None:
        table = MOUNTS.read_text(encoding="utf-8", errors="replace") if MOUNTS.is_file() else ""
    mount = mount_of(root, table)
    if mount is None or not mount.is_shared:
        return
    where = f"{root} lies on {mount.kind} ({mount.place})"
    if not mount.carries_locks:
        yield (
            f"{where}, which keeps file locks on this machine: run here only, as a second machine would not wait for "
            "this one and dvc.lock could lose records. Ray's workers may run anywhere, they lock nothing"
        )
    elif tracking.startswith("sqlite:"):
        yield (
            f"{where}: MLflow's SQLite file does not stand writers on several machines; name a server "
            "(tracking: {uri: http://...}), or run on this machine only"
        )
