"""Writes a safetensors file tensor by tensor, for contents that do not fit into memory together.

The header comes first, so safetensors' own writer needs every tensor at once. Here the contents go to an unnamed
temporary file until all are known. The bytes are those that `safetensors.torch.save_file` writes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

# The order in which safetensors lays tensors out: widest element first, then by dtype.
ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")
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
PIECE = 16 << 20
"""Bytes to copy at a time."""


class TensorFile:
    """A context manager; `finish` writes the file under its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  # closed in __exit__
        self._places: dict[str, tuple[str, list[int], int, int]] = {}

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; it may be changed or freed afterwards.

        Raises:
            ValueError: the name was added before, or the dtype is not supported.
        """
        if name in self._places:
            raise ValueError(f"{self.path.name}: two tensors are named {name!r}")
        if tensor.dtype not in CODES:
            raise ValueError(f"{self.path.name}: {name!r} is {tensor.dtype}, expected one of {', '.join(ORDER)}")
        start = self._waiting.tell()
        self._waiting.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        self._places[name] = (CODES[tensor.dtype], list(tensor.shape), start, self._waiting.tell() - start)

    def finish(self) -> None:
        """Write the file."""
        names = sorted(self._places, key=lambda name: (ORDER.index(self._places[name][0]), name.encode()))
        header, end = {}, 0
        for name in names:
            code, shape, _, size = self._places[name]
            header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with self.path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                _, _, start, size = self._places[name]
                self._waiting.seek(start)
                left = size
                while left:
                    piece = self._waiting.read(min(left, PIECE))
                    if not piece:
                        raise OSError(
                            f"{self.path.name}: what was set aside for {name!r} is cut short; is the disk full?"
                        )
                    file.write(piece)
                    left -= len(piece)
