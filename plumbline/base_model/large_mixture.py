"""Decoder layers whose experts are too large to be in memory together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plumbline.base_model.experts import DOWN, are_fused_experts, up_name
from plumbline.base_model.grouped_products import GroupedProducts
from plumbline.base_model.names import Names
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.streamed_quantized import StreamedQuantized

Streamed = StreamedModel | StreamedQuantized
LARGE = 4 << 30
"""Bytes of a layer's experts beyond which they are loaded some at a time: less memory, but more work for the disk."""
AT_A_TIME = 1 << 30
"""Bytes of the experts that are loaded at a time; one expert in any case."""
COPIES = 3
"""Copies of the experts that are being loaded: as they are read, stacked and joined."""
ALIGNED = 64
"""Bytes of which rows must be a multiple: the bits of a product can depend on where its matrices begin."""


@dataclass(frozen=True, eq=False)
class LargeMixture:
    """A module of fused experts that are loaded some at a time."""

    name: str
    module: Any
    """Weights may be on the meta device."""

    @property
    def matrices(self) -> tuple[str, str]:
        """Names of the two parameters that hold matrices, in the order of their products."""
        return up_name(self.module), DOWN

    @property
    def bytes(self) -> int:
        """Bytes of all experts' matrices."""
        return sum(self.module.get_parameter(name).nbytes for name in self.matrices)

    @property
    def numel(self) -> int:
        """Number of all experts' weights."""
        return sum(self.module.get_parameter(name).numel() for name in self.matrices)

    @property
    def loaded_bytes(self) -> int:
        """Bytes that loading the largest group of experts takes, at most."""
        return COPIES * max(min(AT_A_TIME, self.bytes), self.bytes // self.experts)

    @property
    def experts(self) -> int:
        """Number of the experts."""
        return len(self.module.get_parameter(DOWN))

    def groups(self, at_a_time: int) -> list[range]:
        """The experts in groups of at most so many whose matrices take at most `AT_A_TIME` bytes."""
        size = max(1, min(at_a_time, AT_A_TIME * self.experts // self.bytes))
        return [range(start, min(start + size, self.experts)) for start in range(0, self.experts, size)]

    def multiplied(
        self, streamed: Streamed, products: GroupedProducts, matrix: str, at_a_time: int | None = None
    ) -> Iterator[range]:
        """Yield each group of experts while this matrix of them is loaded, after its products; then the products are
        complete.

        Args:
            at_a_time: the most experts of a group; None: as many as `AT_A_TIME` allows.
        """
        parameters = [name for name, _ in self.module.named_parameters(recurse=False) if name.startswith(matrix)]
        for group in self.groups(at_a_time or self.experts):
            with streamed.experts(self.name, parameters, group):  # with a bias, where there is one
                products.multiply(group, self.in_out(self.module.get_parameter(matrix)))
                yield group
        products.complete()

    def in_out(self, weights: Tensor) -> Tensor:
        """Experts as the module stores them, as (experts, in, out)."""
        return weights if self.module.is_transposed else weights.transpose(-2, -1)

    def others(self, inside: Names) -> Names:
        """Selects what `inside` does, but for the matrices of the experts."""
        matrices = {f"{self.name}.{matrix}" for matrix in self.matrices}
        return lambda name: inside(name) and name not in matrices


def large_mixture(streamed: Streamed, layer: str) -> LargeMixture | None:
    """The module of fused experts in a decoder layer, if they are loaded some at a time: it is the only one, it is
    large, its checkpoint lets some experts be read, and the model multiplies them as `GroupedProducts` does."""
    modules = streamed.model.get_submodule(layer).named_modules(prefix=layer)
    mixtures = [LargeMixture(name, module) for name, module in modules if are_fused_experts(module)]
    if len(mixtures) != 1 or mixtures[0].name not in streamed.stored_experts or streamed.device.type != "cpu":
        return None
    (mixture,) = mixtures
    weights = [mixture.module.get_parameter(name) for name in mixture.matrices]
    aligned = all(width * x.element_size() % ALIGNED == 0 for x in weights for width in x.shape[1:])
    grouped = getattr(mixture.module.config, "_experts_implementation", None) == "grouped_mm"
    return mixture if aligned and grouped and mixture.bytes > LARGE else None
