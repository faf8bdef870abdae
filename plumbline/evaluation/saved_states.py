"""The points from which an evaluation layer by layer goes on after an interruption.

Behind every decoder layer, the hidden states of all batches are put on disk in place of those behind the layer before.
What follows from the last ones (divergences, likelihoods) is a point of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.pieces import Pieces

Figures = Mapping[str, np.ndarray]
"""Arrays by name."""


@dataclass(frozen=True)
class SavedStates:
    """The hidden states of one model over some batches, behind the last layer that is done.

    Attributes:
        model: tells the models of an evaluation apart.
        layers: names of the decoder layers.
        batches: their number.
    """

    pieces: Pieces
    model: str
    layers: Sequence[str]
    batches: int

    def read(self, hidden: HiddenStates) -> int:
        """Put them into `hidden`, and return how many layers are done; 0: there are none, or they are damaged."""
        for number, layer in reversed(list(enumerate(self.layers))):
            if self.pieces.facts(self._part(layer)) is not None:
                for row in range(self.batches):
                    hidden[row] = self.pieces.tensor(self._part(layer), str(row))
                return number + 1
        return 0

    def write(self, number: int, hidden: HiddenStates) -> None:
        """Write those behind layer `number`, and remove those before it."""
        rows = ({str(row): hidden[row]} for row in range(self.batches))
        self.pieces.write(self._part(self.layers[number]), rows, {})
        if number:
            self.pieces.remove(self._part(self.layers[number - 1]))

    def complete(self, hidden: HiddenStates) -> None:
        """Write those behind the last layer, unless they are there."""
        if self.pieces.facts(self._part(self.layers[-1])) is None:
            self.write(len(self.layers) - 1, hidden)

    def _part(self, layer: str) -> str:
        return f"{self.model}.{layer}.states"


def figures(pieces: Pieces, name: str, compute: Callable[[], Figures]) -> Figures:
    """What `compute` returns, from disk if it was computed before."""
    if pieces.facts(name) is None:
        computed = compute()
        pieces.write(name, [{key: torch.from_numpy(values)} for key, values in computed.items()], {})
        return computed
    return {key: pieces.tensor(name, key).numpy() for key in pieces.tensors(name)}
