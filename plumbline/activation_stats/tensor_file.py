"""Writes a safetensors file tensor by tensor, for contents that do not fit into memory together.

The header comes first, so safetensors' own writer needs every tensor at once. Here the contents go to unnamed temporary
files until all are known, one per dtype. They are then copied from the last to the first, and what was copied is cut
off, so the disk holds them about once: exactly where tensors of a dtype are added in order of their names. The bytes
are those that `safetensors.torch.save_file` writes.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from plumbline.base_model.tensor_reader import CODES

# The order in which safetensors lays tensors out: widest element first, then by dtype.
ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")
WIDTHS = {code: torch.empty(0, dtype=dtype).element_size() for dtype, code in CODES.items()}
"""Bytes of an element."""
PIECE = 16 << 20
"""Bytes to copy at a time."""
FLUSHED = 256 << 20
"""Bytes that the disk holds twice at most while files are joined."""


class TensorFile:
    """A context manager; `finish` writes the file under its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: dict[str, IO[bytes]] = {}
        """By dtype."""
        self._places: dict[str, _Place] = {}

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._waiting.values():
            file.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; it may be changed or freed afterwards.

        Raises:
            ValueError: the name was added before, or the dtype is not supported.
        """
        if name in self._places:
            raise ValueError(f"{self.path.name}: two tensors are named {name!r}")
        if tensor.dtype not in CODES:
            raise ValueError(f"{self.path.name}: {name!r} is {tensor.dtype}, expected one of {', '.join(ORDER)}")
        code = CODES[tensor.dtype]
        if code not in self._waiting:
            self._waiting[code] = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115  # closed in __exit__
        file = self._waiting[code]
        start = file.tell()
        file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        self._places[name] = _Place(code, tuple(tensor.shape), start, file.tell())

    def finish(self) -> None:
        """Write the file."""
        head, offsets = layout({name: (place.code, place.shape) for name, place in self._places.items()})
        left: dict[str, list[_Place]] = {}
        for place in self._places.values():
            left.setdefault(place.code, []).append(place)
        with self.path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + sum(place.size for place in self._places.values()))
            for name in reversed(offsets):
                place = self._places[name]
                waiting = self._waiting[place.code]
                file.seek(len(head) + offsets[name])
                copy(waiting, place.start, place.size, file, f"{self.path.name}: {name!r}")
                place.copied = True
                of_dtype = left[place.code]
                while of_dtype and of_dtype[-1].copied:
                    waiting.truncate(of_dtype.pop().start)


@dataclass
class _Place:
    """Where a tensor waits."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int
    copied: bool = False

    @property
    def size(self) -> int:
        return self.end - self.start


def layout(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The head of a safetensors file (length and header), and the offset of each tensor behind it, in their order.

    Args:
        tensors: dtype (safetensors' name) and shape by name.
        metadata: of the file.
    """
    names = sorted(tensors, key=lambda name: (ORDER.index(tensors[name][0]), name.encode()))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offsets, end = {}, 0
    for name in names:
        code, shape = tensors[name]
        offsets[name], start = end, end
        end += math.prod(shape) * WIDTHS[code]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def copy(source: IO[bytes], start: int, size: int, target: IO[bytes], name: str) -> None:
    """Copy `size` bytes from `start` to where `target` is.

    Raises:
        OSError: there are fewer.
    """
    source.seek(start)
    for done in range(0, size, PIECE):
        piece = source.read(min(PIECE, size - done))
        if len(piece) < min(PIECE, size - done):
            raise OSError(f"{name}: what was set aside is cut short; is the disk full?")
        target.write(piece)


def join(parts: Sequence[Path], path: Path) -> None:
    """Write one safetensors file from several, which are used up: what was copied is cut off their ends.

    A call that was interrupted once `path` was there is taken up again by the same call; before that, the parts are
    whole.

    Args:
        parts: with different tensors, each a file that `TensorFile` wrote.
    """
    entries, starts = dict[str, tuple[Path, dict[str, Any]]](), dict[Path, int]()
    for part in parts:
        with part.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            starts[part] = 8 + size
            entries |= {name: (part, entry) for name, entry in json.loads(file.read(size)).items()}
    head, offsets = layout({name: (entry["dtype"], entry["shape"]) for name, (_, entry) in entries.items()})
    if not path.exists():
        draft = path.with_name(f".{path.name}.draft")
        with draft.open("wb") as file:
            file.write(head)
            file.truncate(
                len(head) + sum(entry["data_offsets"][1] - entry["data_offsets"][0] for _, entry in entries.values())
            )
        draft.replace(path)
    with path.open("r+b") as target:
        ends, copied = dict[Path, int](), 0
        for name in reversed(offsets):
            part, entry = entries[name]
            first, last = (starts[part] + offset for offset in entry["data_offsets"])
            if part.stat().st_size < last:
                continue  # it was copied before the interruption
            target.seek(len(head) + offsets[name])
            with part.open("rb") as file:
                copy(file, first, last - first, target, f"{part.name}: {name!r}")
            ends[part], copied = first, copied + last - first
            if copied >= FLUSHED:
                _cut(target, ends)
                copied = 0
        _cut(target, ends)


def _cut(target: IO[bytes], ends: dict[Path, int]) -> None:
    """Cut off what was copied, once it is on the disk."""
    target.flush()
    os.fsync(target.fileno())
    for part, end in ends.items():
        os.truncate(part, end)
    ends.clear()
