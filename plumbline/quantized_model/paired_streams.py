"""The hidden states of the calibration samples in the base model and behind the quantized layers, side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from plumbline.base_model.decoder import Call, run_layer
from plumbline.quantized_model.correction import CrossSums
from plumbline.quantized_model.partial_pass import Observed, observe

RECORDED_BYTES = 1 << 30
"""What the sites of a layer read in the base model is kept if it is not larger; else each site runs the base again."""


class Rows(Protocol):
    """A tensor per sample, by number: a list, or hidden states of which some are on disk."""

    def __getitem__(self, row: int, /) -> Tensor: ...
    def __setitem__(self, row: int, hidden: Tensor, /) -> None: ...


class Streams:
    """Hidden states before the current decoder layer, a tensor (1, tokens, width) per sample.

    Attributes:
        base: of the base model; advances only where `paired`.
        hidden: behind the quantized layers.
        scratch: an existing folder for what experts are called with; None: they stay in memory.
        original, layer: the current layer of the base model, and the copy of it that is being quantized.
        records: per sample, what the base model's layer showed; empty if that is too large.
    """

    original: nn.Module
    layer: nn.Module

    def __init__(self, hidden: Rows, base: Rows, paired: bool, scratch: Path | None = None) -> None:
        """
        Args:
            hidden, base: the inputs of the first decoder layer; replaced as the samples advance. Without `paired`,
                `base` is not read.
        """
        self.hidden, self.base, self.paired, self.scratch = hidden, base, paired, scratch
        self.records: list[Observed] = []

    def enter(self, original: nn.Module) -> None:
        """Make `original` the current layer."""
        self.original, self.layer, self.records = original, copy.deepcopy(original), []

    def record(self, inputs_of: Sequence[str], outputs_of: Sequence[str], calls: Sequence[Call]) -> None:
        """Run the base model's samples through the current layer once for all sites."""
        width = sum(self.original.get_submodule(name).get_parameter("weight").shape[1] for name in inputs_of)
        width += sum(self.original.get_submodule(name).get_parameter("weight").shape[0] for name in outputs_of)
        rows = range(len(calls))
        if width * sum(x.shape[1] * x.element_size() for x in map(self.base.__getitem__, rows)) > RECORDED_BYTES:
            return
        self.records = [observe(self.original, self.base[row], calls[row], inputs_of, outputs_of) for row in rows]

    def advance(self, calls: Sequence[Call]) -> None:
        """Run the samples through the current layer, which is quantized now."""
        for row, call in enumerate(calls):
            self.hidden[row] = run_layer(self.layer, self.hidden[row], call)
            if self.paired:
                x = self.records[row].hidden if self.records else run_layer(self.original, self.base[row], call)
                assert x is not None
                self.base[row] = x


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
        behind = observe(streams.layer, streams.hidden[row], call, (), self.earlier, self.inner)
        if streams.records:
            base = streams.records[row]
        else:
            base = observe(streams.original, streams.base[row], call, (), self.earlier, self.inner)
        x, base_x = behind.inputs.get(self.inner), base.inputs.get(self.inner)
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
                d += base.outputs[name].float() - behind.outputs[name].float()
        if mask is not None:
            x, d = x[mask.to(x.device)], d[mask.to(x.device)]
        if len(x):
            self.sums.add(x, d, 1 / len(x) if normalization == "sequence" else 1.0)
