"""What propagation gains: KL and error of the calibration samples with stored and with propagated statistics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from plumbline.activation_stats.totals import Sample
from plumbline.base_model.decoder import Call, Decoder, run_layer
from plumbline.divergence import predict, token_divergence
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.simulate import put

REPORTED = 8
"""Samples, spread evenly over the calibration set, on which the gain is measured."""


class Gain:
    """Runs some samples through the base model, the model quantized from stored statistics, and the propagated one."""

    def __init__(self, decoder: Decoder, ordered: Sequence[Sample], scheme: SchemeParams) -> None:
        """The weights outside the decoder layers must be in memory."""
        n = min(REPORTED, len(ordered))
        self.samples = [ordered[len(ordered) * k // n][1] for k in range(n)]
        self.decoder, self.scheme = decoder, scheme
        starts = [decoder.start(ids).hidden for ids in self.samples]
        self.base, self.before, self.after = list(starts), list(starts), list(starts)

    def through(
        self, number: int, stored: Mapping[str, Layer], layers: Mapping[str, Layer], calls: Sequence[Call]
    ) -> None:
        """Advance all three by a decoder layer.

        Args:
            stored, layers: its matrices, quantized from stored statistics and propagated.
            calls: the arguments of the layer for each of `samples`.
        """
        self.base = [self.decoder.run(number, x, call) for x, call in zip(self.base, calls, strict=True)]
        prefix = f"{self.decoder.names[number]}."
        for stream, chosen in (("before", stored), ("after", layers)):
            layer = copy.deepcopy(self.decoder.layers[number])
            for name in layers:
                put(layer, name.removeprefix(prefix), chosen[name], self.scheme)
            setattr(
                self, stream, [run_layer(layer, x, call) for x, call in zip(getattr(self, stream), calls, strict=True)]
            )

    def result(self) -> dict[str, Any]:
        sums = {"stored": [0.0, 0.0], "propagated": [0.0, 0.0]}
        energy, tokens = 0.0, 0
        for ids, base, *streams in zip(self.samples, self.base, self.before, self.after, strict=True):
            if len(ids) < 2:
                continue
            energy += float(base.double().square().sum())
            tokens += len(ids) - 1
            targets = torch.tensor(list(ids[1:]), device=base.device)
            reference = predict(self.decoder.logits(ids, base)[0, :-1], targets)
            for what, x in zip(sums, streams, strict=True):
                sums[what][0] += float(token_divergence(reference, self.decoder.logits(ids, x)[0, :-1]).kl.sum())
                sums[what][1] += float((x.double() - base.double()).square().sum())
        return {
            "measured_on": f"{len(self.samples)} of the calibration samples themselves, {tokens} tokens",
            **{
                what: {"kl": round(kl / max(tokens, 1), 7), "error": round(lost / energy if energy else 0.0, 7)}
                for what, (kl, lost) in sums.items()
            },
        }
