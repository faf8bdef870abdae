"""The hidden states of every sample between two layers: in memory up to a limit, the rest in a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor


class HiddenStates:
    """One CPU tensor per row, which may be written again with another shape or dtype: some layers widen what they get.

    The file has no name, so it disappears with the process however that ends.
    """

    def __init__(self, in_memory: int, scratch: Path) -> None:
        """Args:
        in_memory: bytes to keep in memory.
        scratch: an existing folder for the rest.
        """
        self.left, self.scratch = in_memory, scratch
        self._kept: dict[int, Tensor] = {}
        self._places: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._file, self._end = tempfile.TemporaryFile(dir=scratch), 0  # noqa: SIM115  # closed in __exit__

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._kept.clear()

    @property
    def on_disk(self) -> int:
        """Bytes in the file."""
        return self._end

    def __setitem__(self, row: int, hidden: Tensor) -> None:
        hidden = hidden.detach().cpu()
        before = self._kept.pop(row, None)
        if before is not None:
            self.left += before.nbytes
        if row not in self._places and hidden.nbytes <= self.left:
            self.left -= hidden.nbytes
            self._kept[row] = hidden
            return
        offset, shape, dtype = self._places.get(row, (self._end, torch.Size([0]), hidden.dtype))
        if hidden.nbytes > shape.numel() * dtype.itemsize:  # it would reach into the next row
            offset = self._end
            self._end += hidden.nbytes
        self._places[row] = (offset, hidden.shape, hidden.dtype)
        self._file.seek(offset)
        self._file.write(_bytes(hidden.contiguous()))

    def __getitem__(self, row: int) -> Tensor:
        if row in self._kept:
            return self._kept[row]
        offset, shape, dtype = self._places[row]
        hidden = torch.empty(shape, dtype=dtype)
        self._file.seek(offset)
        if self._file.readinto(_bytes(hidden)) != hidden.nbytes:  # type: ignore[attr-defined]
            raise OSError("the file of hidden states ends early: is the disk full?")
        return hidden


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
