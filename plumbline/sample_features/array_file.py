"""Arrays on disk that are filled row by row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike


def new_array_file(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Create a .npy file of zeros and map it into memory.

    Its blocks are reserved first. Otherwise the first write to a page for which the disk has no room ends the process
    with SIGBUS, without a message.

    Raises:
        OSError: the disk is full; the message names the file.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if not hasattr(os, "posix_fallocate"):  # macOS
        return array
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, max(path.stat().st_size, 1))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)
    return array
