"""The hidden states of the calibration samples in the base model and behind the quantized layers, side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from plumbline.base_model.decoder import Call, run_layer
from plumbline.quantized_model.correction import CrossSums
from plumbline.quantized_model.partial_pass import input_of


class Streams:
    """Hidden states before the current decoder layer, a tensor (1, tokens, width) per sample.

    Attributes:
        base: of the base model; advances only where `paired`.
        hidden: behind the quantized layers.
        original, layer: the current layer of the base model, and the copy of it that is being quantized.
    """

    original: nn.Module
    layer: nn.Module

    def __init__(self, starts: Sequence[Tensor], paired: bool) -> None:
        self.base, self.hidden, self.paired = list(starts), list(starts), paired

    def enter(self, original: nn.Module) -> None:
        """Make `original` the current layer."""
        self.original, self.layer = original, copy.deepcopy(original)

    def advance(self, calls: Sequence[Call]) -> None:
        """Run the samples through the current layer, which is quantized now."""
        for row, call in enumerate(calls):
            self.hidden[row] = run_layer(self.layer, self.hidden[row], call)
            if self.paired:
                self.base[row] = run_layer(self.original, self.base[row], call)


class PairedSite:
    """Sums the cross moments of a site over both streams."""

    def __init__(
        self, streams: Streams, local: Mapping[str, str], members: Sequence[str], writes: bool, earlier: Sequence[str]
    ) -> None:
        """
        Args:
            local: full name -> name within the layer.
            members: of the site.
            writes: whether its one member adds its output to the residual stream.
            earlier: names within the layer of the quantized Linears that have added theirs before it.
        """
        self.streams, self.name, self.writes, self.earlier = streams, members[0], writes, earlier
        self.inner = local[members[0]]
        self.weight = streams.original.get_submodule(self.inner).get_parameter("weight")  # (out, in)
        out, width = self.weight.shape
        self.sums = CrossSums(width, out if writes else width, streams.hidden[0].device, of_input=not writes)

    def add(self, row: int, call: Call, mask: Tensor | None, normalization: str) -> None:
        """Run sample `row` up to the site in both streams and add its tokens.

        Args:
            mask: (tokens,) bool: the tokens that count; None: all.

        Raises:
            ValueError: the streams read different tokens there.
        """
        streams = self.streams
        x, outputs = input_of(streams.layer, self.inner, streams.hidden[row], call, self.earlier)
        base_x, base_outputs = input_of(streams.original, self.inner, streams.base[row], call, self.earlier)
        if x is None or base_x is None or x.shape != base_x.shape or len(x) != streams.hidden[row].shape[1]:
            raise ValueError(
                f"{self.name} reads other tokens behind quantized layers than in the base model, so their difference "
                "is unknown; write correction: 0 in the scheme"
            )
        d = base_x.float() - x.float()
        if self.writes:
            d = torch.nn.functional.linear(d, self.weight.float())
            d += streams.base[row][0].float() - streams.hidden[row][0].float()
            for name in self.earlier:
                d += base_outputs[name].float() - outputs[name].float()
        if mask is not None:
            x, d = x[mask.to(x.device)], d[mask.to(x.device)]
        if len(x):
            self.sums.add(x, d, 1 / len(x) if normalization == "sequence" else 1.0)
