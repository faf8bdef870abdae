"""Hot flips: the first-order change of the loss of a sample for every rounding decision, from one backward pass.

Letters as in HotFlip (Ebrahimi et al. 2018, the score of a discrete change is a directional derivative), here for the
weights of a quantized model instead of the tokens of a text: W the weights, Ŵ = RTN(W), Δ the step of a weight's
group, p the next-token distribution.

    L(s)    = mean over the tokens t of s of KL(p_W(.|s,t) || p_Ŵ(.|s,t))
    G(s)    = dL/dŴ (at W it would be 0, and Taylor terms at W are off by orders of magnitude: PQI, 2503.01901)
    d_ij    = Δ sign(w_ij - ŵ_ij), the step to the neighbour on the grid at the other side of w_ij
    δ_ij(s) = G_ij(s) d_ij, the change by the flip to first order; below 0 it helps
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline.quantized_model.grid import Grid, QuantizedWeight, dequantize
from plumbline.quantized_model.numbers import code_range
from plumbline.quantized_model.rtn import rtn
from plumbline.quantized_model.scheme import group_size_for, quantizable_linears

Path = tuple[float, ...]
"""Points t at which the gradient is taken, W + t (Ŵ - W)."""
PATH: Path = (0.125, 0.375, 0.625, 0.875)
"""The midpoints of a path from W to Ŵ in four parts."""
ROUNDED: Path = (1.0,)
"""The end of that path alone: one backward pass at Ŵ."""
CHUNK = 1 << 22
"""Number of logits whose loss is computed at once, in float64."""

Receive = Callable[[int, Tensor], None]
"""Called with the number of a layer and its δ (out, in), as the backward pass reaches it."""


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """A Linear with its original and its rounded weights, and its groups."""

    name: str
    original: Tensor
    """W of the shared model itself, (out, in)."""
    codes: Tensor
    """int8 (out, in)."""
    scale: Tensor
    """Δ per group of input channels, float (out, in / width): exactly the stored value."""
    sign: Tensor
    """int8 (out, in): sign(w - ŵ). 0 where w lies on the grid (there was nothing to decide), and where the neighbour
    would lie beyond the end of the grid (a clipped weight)."""
    width: int
    """Input channels of a group."""
    rows: int
    """Output channels of a group; the last group may have fewer."""
    first: int
    """Number of its first group, counted over all layers."""

    @property
    def shape(self) -> tuple[int, int]:
        """Groups along the output and along the input channels."""
        out, columns = self.codes.shape
        return -(-out // self.rows), columns // self.width

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.shape[0] * self.shape[1]

    def rounded(self) -> Tensor:
        """Ŵ, (out, in) in the dtype of the scale, where products of code and scale are not rounded again."""
        return dequantize(QuantizedWeight(self.codes, self.scale, Grid(0)))

    def steps(self) -> Tensor:
        """d, (out, in)."""
        return dequantize(QuantizedWeight(self.sign, self.scale, Grid(0)))

    def at(self, t: float) -> Tensor:
        """W + t (Ŵ - W), exactly W at 0 and Ŵ at 1."""
        if t == 1:
            return self.rounded()
        start = self.original.detach().to(self.scale.dtype)
        return start if t == 0 else start + t * (self.rounded() - start)

    def of_group(self, group: int) -> tuple[slice, slice]:
        """Rows and columns of the group with that number (counted over all layers)."""
        block, column = divmod(group - self.first, self.shape[1])
        return (
            slice(block * self.rows, min((block + 1) * self.rows, len(self.codes))),
            slice(column * self.width, (column + 1) * self.width),
        )

    def group_sums(self, squares: Tensor) -> Tensor:
        """Sums over the members of each group, (groups,)."""
        out = len(squares)
        by_row = squares.reshape(out, -1, self.width).sum(-1)
        padded = nn.functional.pad(by_row, (0, 0, 0, -out % self.rows))
        return padded.reshape(-1, self.rows, by_row.shape[1]).sum(1).flatten()


class FlipScores:
    """Rounds the Linears of a copy of a model and scores the flips; the model itself is only read.

    Attributes:
        layers: the quantized Linears in the model's order.
        forwards: forward passes so far; a backward pass costs about two.
        backwards: backward passes so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        bits: int,
        group_size: int | None,
        rows: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Copy the model into `dtype` and round the copy.

        Args:
            bits: of a code.
            group_size: input channels that share a scale, or the width's largest divisor below it if it does not
                divide the width; None: one scale per output channel. A group of flips has as many columns.
            rows: output channels per group of flips.
            dtype: of the copy and its gradients. bfloat16 would lose the difference of two similar distributions.

        Raises:
            ValueError: no Linear to quantize, or `group_size` does not suit a width; the message names the layer.
        """
        self.layers: list[RoundedLayer] = []
        first = 0
        low, high = code_range(bits)
        for name, linear in quantizable_linears(model, ("lm_head",)).items():
            try:
                size = group_size_for(linear.in_features, group_size, bits)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            weight = linear.weight.detach()
            on_grid = rtn(weight, Grid(bits, size))
            scale = on_grid.scale.to(dtype)
            residual = weight.to(dtype) - dequantize(QuantizedWeight(on_grid.codes, scale, Grid(bits, size)))
            sign = residual.sign().to(torch.int8)
            beyond = (on_grid.codes + sign > high) | (on_grid.codes + sign < low)
            sign = sign.masked_fill(beyond, 0)
            layer = RoundedLayer(name, weight, on_grid.codes, scale, sign, size or linear.in_features, rows, first)
            self.layers.append(layer)
            first += layer.groups
        self.groups = first
        self.forwards = self.backwards = 0
        self._copy = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        self._linears = [self._copy.get_submodule(layer.name) for layer in self.layers]
        self._at: float | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights of the copy, one per layer."""
        return [linear.weight for linear in self._linears]  # type: ignore[misc]

    @torch.no_grad()
    def base(self, ids: NDArray[np.int32]) -> Tensor:
        """Logits of the unrounded model, (T, V)."""
        self._move(0)
        return self._logits(ids)

    @torch.no_grad()
    def loss(self, ids: NDArray[np.int32], base: Tensor) -> float:
        """L(s) at the copy's current weights: Ŵ with the changes of `flipped`."""
        if self._at != 1:
            self._move(1)
        return _loss(base, self._logits(ids), None)

    def scores(self, ids: NDArray[np.int32], base: Tensor, receive: Receive, path: Path = ROUNDED) -> float:
        """Pass every layer's δ of one sample to `receive`, and return L(s) at the last point of the path.

        A layer's gradient is freed once it is reduced, so the gradient of the whole model is never in memory, except
        for a path of several points, which needs their mean.
        """
        hooks = []
        try:
            for number, parameter in enumerate(self.parameters):
                parameter.requires_grad_(True)
                hook: Any = self._reducing(number, receive, len(path))
                hooks.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
            self._seen = dict.fromkeys(range(len(self.layers)), 0)
            for t in path:
                self._move(t)
                logits = self._logits(ids)
                slope = torch.empty_like(logits)
                with torch.no_grad():
                    loss = _loss(base, logits, slope)
                torch.autograd.backward(logits, slope / len(path))
                self.backwards += 1
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in self.parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
        return loss

    def _reducing(self, number: int, receive: Receive, points: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            self._seen[number] += 1
            if self._seen[number] == points and parameter.grad is not None:
                with torch.no_grad():
                    receive(number, parameter.grad * self.layers[number].steps())
                parameter.grad = None

        return hook

    @contextmanager
    def flipped(self, number: int, which: Tensor) -> Iterator[None]:
        """A context in which the weights of layer `number` at `which` (out, in) are on their other neighbour."""
        if self._at != 1:
            self._move(1)
        layer, parameter = self.layers[number], self.parameters[number]
        with torch.no_grad():
            parameter.copy_(dequantize(QuantizedWeight(layer.codes + layer.sign * which, layer.scale, Grid(0))))
        try:
            yield
        finally:
            with torch.no_grad():
                parameter.copy_(layer.rounded())

    @torch.no_grad()
    def _move(self, t: float) -> None:
        if self._at != t:
            for layer, parameter in zip(self.layers, self.parameters, strict=True):
                parameter.copy_(layer.at(t))
            self._at = t

    def _logits(self, ids: NDArray[np.int32]) -> Tensor:
        self.forwards += 1
        tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(self._copy.device)
        logits: Tensor = self._copy(input_ids=tokens[None], use_cache=False).logits[0]
        return logits


def _loss(base: Tensor, logits: Tensor, slope: Tensor | None) -> float:
    """Mean KL over the tokens; `slope` receives its derivative by the logits, (softmax(logits) - softmax(base)) / T."""
    total = 0.0
    step = max(1, CHUNK // logits.shape[1])
    for start in range(0, len(logits), step):
        x, y = base[start : start + step].double(), logits[start : start + step].double()
        p, log_sum_x = _softmax(x)
        q, log_sum_y = _softmax(y)
        total += float(torch.linalg.vecdot(p, x - y).sum() - (log_sum_x - log_sum_y).sum())
        if slope is not None:
            slope[start : start + step] = (q - p) / len(logits)
    return total / len(logits)


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(softmax, log of the sum of exponentials) along the last dimension, computing each exponential once."""
    largest = logits.amax(-1, keepdim=True)
    powers = (logits - largest).exp_()
    total = powers.sum(-1, keepdim=True)
    return powers / total, (largest + total.log()).squeeze(-1)
