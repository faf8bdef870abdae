"""Reads a safetensors file tensor by tensor, its header once, without mapping it.

safetensors maps the whole file into memory. A limit on the process counts that, whatever of it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from plumbline.base_model.weight_files import header

CODES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' name of a dtype."""
ALIGNED = 64
"""Bytes of a cache line, and of the widest vector."""
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
        self._file, self._lock = path.open("rb", buffering=0), Lock()
        self._start = 8 + int.from_bytes(self._file.read(8), "little")

    def get_tensor(self, name: str) -> Tensor:
        """The tensor of that name, read anew.

        Raises:
            KeyError: the file has none.
            OSError: the file was cut short meanwhile.
        """
        return self.unread(name).read()

    def read(self, name: str, entry: Mapping[str, Any]) -> Tensor:
        """The tensor `name`, or the rows of it that `entry` says."""
        first, last = (self._start + offset for offset in entry["data_offsets"])
        content = _placed(last - first, first)
        left = content.numpy().data
        with self._lock:
            self._file.seek(first)
            while len(left):  # a call reads 2 GiB at most
                if not (count := self._file.readinto(left)):
                    raise OSError(f"{self._file.name}: {name!r} is cut short; was the file changed while it was read?")
                left = left[count:]
        return content.view(DTYPES[entry["dtype"]]).view(entry["shape"])

    def unread(self, name: str) -> UnreadTensor:
        """The tensor of that name, to be read later."""
        return UnreadTensor(self, name, self._entries[name])


@dataclass(frozen=True, eq=False)
class UnreadTensor:
    """A tensor in a file, with the methods of safetensors' slices that transformers' loader calls."""

    reader: TensorReader
    name: str
    entry: Mapping[str, Any]

    def get_shape(self) -> list[int]:
        return list(self.entry["shape"])

    def get_dtype(self) -> str:
        return str(self.entry["dtype"])

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()[index]

    def read(self) -> Tensor:
        """The tensor, read anew. Raises as `TensorReader.get_tensor`."""
        return self.reader.read(self.name, self.entry)

    def rows(self, rows: range) -> UnreadTensor:
        """Some rows, to be read later."""
        first, last = self.entry["data_offsets"]
        shape = self.get_shape()
        size = (last - first) // shape[0]
        offsets = [first + size * rows.start, first + size * rows.stop]
        return replace(self, entry={**self.entry, "shape": [len(rows), *shape[1:]], "data_offsets": offsets})


def _placed(size: int, place: int) -> Tensor:
    """Memory for so many bytes at an address that is congruent to `place`, as if the file were mapped.

    The bits of a float32 product depend on where its matrices begin (MKL), and `from_pretrained` maps them.
    """
    memory = torch.empty(size + ALIGNED, dtype=torch.uint8)
    start = (place - memory.data_ptr()) % ALIGNED
    return memory[start : start + size]
