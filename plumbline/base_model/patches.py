"""A convolution as a matrix product: the patches that its weight is multiplied with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional


def patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The patches of an image that a convolution reads.

    Args:
        layer: a convolution of one group.
        x: (n, channels, height, width) or (channels, height, width).

    Returns:
        (n * output positions, channels * kernel height * kernel width): `patches @ weight.flatten(1).T` plus the bias
        is the output, position by position.
    """
    x = x if x.dim() == 4 else x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # unfold takes channels in the order of weight.flatten(1)
    columns = functional.unfold(
        functional.pad(x, _padding(layer), mode=mode), layer.kernel_size, layer.dilation, stride=layer.stride
    )
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def geometry(layer: nn.Conv2d) -> tuple[object, ...]:
    """What determines the patches besides the image: convolutions with equal geometry read the same patches."""
    return layer.kernel_size, layer.stride, layer.dilation, tuple(_padding(layer)), layer.padding_mode


def _padding(layer: nn.Conv2d) -> list[int]:
    """Padding as `functional.pad` takes it: left, right, top, bottom."""
    sides: list[int] = []
    for size, dilation, padding in zip(
        reversed(layer.kernel_size), reversed(layer.dilation), _per_dimension(layer.padding), strict=True
    ):
        # With "same" and odd total padding, the extra element goes to the end, as in torch.
        total = dilation * (size - 1) if padding == "same" else 2 * cast(int, padding)
        sides += [total // 2, total - total // 2]
    return sides


def _per_dimension(padding: str | Sequence[int]) -> list[str | int]:
    if isinstance(padding, str):
        return ["same", "same"] if padding == "same" else [0, 0]
    return list(reversed(padding))
