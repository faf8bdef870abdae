"""The products of a layer's experts with the tokens of many samples, some experts in memory at a time.

transformers multiplies the tokens of a sample, in order of their experts, with all experts in two grouped products
(`grouped_mm` in `integrations/moe.py`), and the model's own code stands before, between and behind them. Here a pass
runs while the experts' weights are absent, and stops at the first product that is not known. Once all samples have
stopped, some experts are loaded at a time and multiplied with their rows of every sample; then the next pass runs.

All but the products is the model's own code on the same tensors, so it computes the same bits. A product does, because
PyTorch multiplies each expert by itself with its rows, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from plumbline.base_model.row_file import RowFile


class GroupedProducts:
    """The grouped products of one decoder layer in many samples; a context manager."""

    def __init__(self, scratch: Path | None = None) -> None:
        """
        Args:
            scratch: an existing folder for the inputs and results of products; None: where temporary files are.
        """
        self._scratch = scratch
        self._known: list[RowFile] = []
        """Results by sample, of the products that are known, in the order of the pass."""
        self._offsets: dict[int, list[int]] = {}
        """Sample -> for every expert, the number of rows up to its last."""
        self._inputs, self._results = RowFile(scratch), RowFile(scratch)

    def __enter__(self) -> GroupedProducts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (*self._known, self._inputs, self._results):
            file.close()

    def known(self, sample: int) -> TorchFunctionMode:
        """Context in which a pass of the sample takes the products that are known.

        Raises:
            UnknownProduct: in the context, at the first product that is not.
        """
        return _KnownProducts([file.read(sample) for file in self._known if sample in file])

    def until(self, sample: int, run: Callable[[], object]) -> None:
        """Run a pass of the sample up to the first product that is not known, and keep the input of that."""
        try:
            with self.known(sample):
                run()
        except UnknownProduct as product:
            self._offsets[sample] = product.offsets.tolist()
            self._inputs.add(sample, (len(product.x), product.x.shape[-1]), product.x.dtype)
            self._inputs.write(sample, 0, product.x)
            self._results.add(sample, (len(product.x), product.width), product.x.dtype)

    def multiply(self, experts: range, weights: Tensor) -> None:
        """Multiply some experts with their rows in all samples that stopped.

        Args:
            weights: (experts, in, out).
        """
        for sample, offsets in self._offsets.items():
            first, last = offsets[experts[0] - 1] if experts[0] else 0, offsets[experts[-1]]
            if first == last:
                continue
            x = self._inputs.read(sample, first, last).to(weights.device)
            ends = torch.tensor([offsets[expert] - first for expert in experts], dtype=torch.int32)
            self._results.write(sample, first, functional.grouped_mm(x, weights, offs=ends.to(weights.device)))

    def complete(self) -> None:
        """Say that the product is known: all experts were multiplied."""
        self._inputs.close()
        self._known.append(self._results)
        self._inputs, self._results = RowFile(self._scratch), RowFile(self._scratch)
        self._offsets.clear()


class UnknownProduct(ValueError):
    """A grouped product that is not known: its input, the offsets of the experts in it, and the width of its result."""

    def __init__(self, x: Tensor, offsets: Tensor, width: int) -> None:
        self.x, self.offsets, self.width = x, offsets, width
        super().__init__(
            "a decoder layer calls its experts in a way that is not known here; say `execution: {mode: whole}` in "
            "params.yaml"
        )


class _KnownProducts(TorchFunctionMode):
    """Within the context, on this thread, grouped products are these results, in order."""

    def __init__(self, results: Sequence[Tensor]) -> None:
        super().__init__()
        self._left = list(results)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch._grouped_mm:
            return func(*args, **kwargs)
        x, weights = args
        if not self._left:
            raise UnknownProduct(x, kwargs["offs"], weights.shape[-1])
        return self._left.pop(0).to(x.device)
