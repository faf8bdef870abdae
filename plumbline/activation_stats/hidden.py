"""The hidden states of every sample between two layers: in memory up to a limit, the rest in a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor


class HiddenStates:
    """One CPU tensor per row; a row keeps its shape and dtype when it is written again.

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
        size = hidden.numel() * hidden.element_size()
        if row not in self._kept and row not in self._places:
            if size <= self.left:
                self.left -= size
                self._kept[row] = hidden
            else:
                self._places[row] = (self._end, hidden.shape, hidden.dtype)
                self._end += size
        if row in self._kept:
            self._kept[row] = hidden
        else:
            self._file.seek(self._places[row][0])
            self._file.write(_bytes(hidden.contiguous()))

    def __getitem__(self, row: int) -> Tensor:
        if row in self._kept:
            return self._kept[row]
        offset, shape, dtype = self._places[row]
        hidden = torch.empty(shape, dtype=dtype)
        self._file.seek(offset)
        if self._file.readinto(_bytes(hidden)) != hidden.numel() * hidden.element_size():  # type: ignore[attr-defined]
            raise OSError("the file of hidden states ends early: is the disk full?")
        return hidden


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
