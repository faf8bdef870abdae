"""Reads a safetensors file tensor by tensor, its header once, without mapping it.

safetensors maps the whole file into memory. A limit on the process counts that, whatever of it is read.
"""

from __future__ import annotations

import math
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from plumbline.activation_stats.tensor_file import CODES
from plumbline.base_model.weight_files import header

DTYPES = {code: dtype for dtype, code in CODES.items()}


class TensorReader:
    """The file stays open, so a file that takes its place is not read. Threads may share a reader."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            FileNotFoundError: the file is absent.
            ValueError: it is truncated, or no safetensors file.
        """
        self._entries = header(path)
        self._file, self._lock = path.open("rb"), Lock()
        self._start = 8 + int.from_bytes(self._file.read(8), "little")

    def get_tensor(self, name: str) -> Tensor:
        """The tensor of that name, read anew.

        Raises:
            KeyError: the file has none.
            OSError: the file was cut short meanwhile.
        """
        entry = self._entries[name]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        if math.prod(entry["shape"]):
            buffer = tensor.view(-1).view(torch.uint8).numpy().data
            with self._lock:
                self._file.seek(self._start + entry["data_offsets"][0])
                if self._file.readinto(buffer) != len(buffer):
                    raise OSError(f"{self._file.name}: {name!r} is cut short; was the file changed while it was read?")
        return tensor
