"""Which file systems keep runs on several machines apart, from the options of their mounts."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from plumbline.versioning.file_system import cannot_lock, lock_warnings, mount_of

TABLE = """\
/dev/sda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
broken line
server:/a {root} {kind} {options} 0 0
"""
SQLITE, SERVER = "sqlite:////w/mlflow.db", "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("kind", "options", "tracking", "said"),
    [
        ("ext4", "rw", SQLITE, ""),
        ("overlay", "rw", SQLITE, ""),
        ("tmpfs", "rw", SQLITE, ""),
        ("nfs4", "rw,local_lock=none", SERVER, ""),
        ("nfs4", "rw,local_lock=none", SQLITE, "MLflow's SQLite file"),
        ("nfs", "rw,nolock", SERVER, "keeps file locks on this machine"),
        ("nfs", "rw,local_lock=all", SERVER, "keeps file locks on this machine"),
        ("lustre", "rw,flock", SERVER, ""),
        ("lustre", "rw,localflock", SERVER, "keeps file locks on this machine"),
        ("cifs", "rw", SERVER, "keeps file locks on this machine"),
        ("fuse.sshfs", "rw", SERVER, "keeps file locks on this machine"),
        ("fuse.s3fs", "rw", SQLITE, "keeps file locks on this machine"),
        ("fuse.glusterfs", "rw", SERVER, ""),
        ("9p", "rw", SERVER, "keeps file locks on this machine"),
    ],
)
def test_what_is_said_of_a_file_system(kind: str, options: str, tracking: str, said: str, tmp_path: Path) -> None:
    table = TABLE.format(root=tmp_path, kind=kind, options=options)
    warnings = list(lock_warnings(tmp_path / "workspace", tracking, table))
    assert len(warnings) == bool(said)
    for warning in warnings:
        assert said in warning and kind in warning and str(tmp_path) in warning


def test_the_innermost_mount_counts_and_a_later_one_hides_an_earlier(tmp_path: Path) -> None:
    inner = tmp_path / "a b"
    inner.mkdir()
    line = "x {} {} rw 0 0\n"
    escaped = str(inner).replace(" ", "\\040")
    table = line.format(escaped, "cifs") + line.format("/", "ext4") + line.format(tmp_path, "nfs4")
    mounts = [mount_of(path, table) for path in (inner, tmp_path, Path("/"))]
    assert [mount and mount.kind for mount in mounts] == ["cifs", "nfs4", "ext4"]
    hidden = mount_of(inner, table + line.format(escaped, "xfs"))
    assert hidden is not None and hidden.kind == "xfs"
    assert mount_of(tmp_path, "") is None and list(lock_warnings(tmp_path, SQLITE, "")) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cannot_lock(tmp_path) == ""

    def flock(*_: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert "without file locks (no locks)" in cannot_lock(tmp_path)


def test_a_lock_that_another_process_holds_is_no_problem(tmp_path: Path) -> None:
    with (tmp_path / "probe.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert cannot_lock(tmp_path) == ""
