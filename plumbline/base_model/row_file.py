"""Matrices in a file, of which some rows are read or written at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor


class RowFile:
    """One matrix per key, on the CPU. The file has no name, so it disappears with the process however that ends."""

    def __init__(self, scratch: Path | None) -> None:
        """
        Args:
            scratch: an existing folder; None: where temporary files are.
        """
        self._places: dict[int, tuple[int, tuple[int, int], torch.dtype]] = {}
        """Key -> offset in the file, shape, dtype."""
        self._file, self._end = tempfile.TemporaryFile(dir=scratch), 0  # noqa: SIM115  # closed in `close`

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def __contains__(self, key: int) -> bool:
        return key in self._places

    def add(self, key: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Make room for a matrix; rows are zero until they are written."""
        self._places[key] = self._end, shape, dtype
        self._end += shape[0] * shape[1] * dtype.itemsize
        self._file.truncate(self._end)

    def write(self, key: int, first: int, rows: Tensor) -> None:
        """Write rows of a matrix, from row `first` on."""
        offset, (_, columns), dtype = self._places[key]
        self._file.seek(offset + first * columns * dtype.itemsize)
        self._file.write(_bytes(rows.cpu().contiguous()))

    def read(self, key: int, first: int = 0, stop: int | None = None) -> Tensor:
        """The rows from `first` to before `stop` (None: to the last).

        Raises:
            OSError: the file ends early.
        """
        offset, (rows, columns), dtype = self._places[key]
        matrix = torch.empty(((rows if stop is None else stop) - first, columns), dtype=dtype)
        self._file.seek(offset + first * columns * dtype.itemsize)
        if self._file.readinto(_bytes(matrix)) != matrix.numel() * dtype.itemsize:  # type: ignore[attr-defined]
            raise OSError("a file of activations ends early: is the disk full?")
        return matrix


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
