"""A disk without room for an array is an error with the file's name, not a killed process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from plumbline.sample_features.array_file import new_array_file


def test_an_array_begins_as_zeros_on_blocks_of_its_own(tmp_path: Path) -> None:
    array = new_array_file(tmp_path / "a.npy", np.float16, (300, 40))
    array[7] = 2
    array.flush()
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 300 * 40 * 2
    expected = np.zeros((300, 40), np.float16)
    expected[7] = 2
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.npy'"):
        new_array_file(tmp_path / "a.npy", np.float32, (4,))
