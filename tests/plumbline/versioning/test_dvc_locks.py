"""What a kill leaves of DVC's own files does not stop the next run."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLockFileCorruptedError, rwlock

from plumbline.versioning.dvc_locks import FILE, GUARD, remove_damaged_locks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Repo.init(str(tmp_path), no_scm=True).close()
    return tmp_path


def lock_with_dvc(root: Path) -> None:
    from dvc.fs import localfs

    with rwlock(str(root / ".dvc/tmp"), localfs, "a test", [], [str(root / "data")], False):
        pass


@pytest.mark.parametrize("text", ["", "{", '{"write": {"data/x": {"pid": 1, "cm', "\0\0"])
def test_a_file_that_dvc_was_killed_in_is_removed(root: Path, text: str) -> None:
    (root / FILE).write_text(text)
    with pytest.raises(RWLockFileCorruptedError):
        lock_with_dvc(root)
    with make_lock(str(root / GUARD)):  # a command of DVC may be in the middle of writing it
        assert not remove_damaged_locks(root) and (root / FILE).exists()
    assert remove_damaged_locks(root)
    lock_with_dvc(root)


def test_locks_of_running_commands_stay(root: Path) -> None:
    assert not remove_damaged_locks(root)
    (root / FILE).write_text('{"write": {"data/x": {"pid": 1, "cmd": "dvc repro"}}, "read": {}}')
    before = (root / FILE).read_text()
    assert not remove_damaged_locks(root) and (root / FILE).read_text() == before
