"""`propagate: quantized` for a model that does not fit into memory: the samples advance with the layer in memory.

What `propagate.propagated` keeps in memory, the hidden states of all samples, goes to disk beyond a limit, and is a
part on disk after every layer, so that a later run goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.resumable import states_after
from plumbline.activation_stats.totals import Masks, Sample, in_order
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.matrices import matrix_of
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.layer_walk import PropagatedLayer
from plumbline.quantized_model.paired_streams import Streams
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.propagate import settings_of, solver, through
from plumbline.quantized_model.propagation_gain import Gain


@dataclass(frozen=True, eq=False)
class SetAgain:
    """The calibration set, which is run again.

    Attributes:
        samples, masks: as `Source` has them.
        in_memory: bytes of hidden states in memory.
        scratch: an existing folder for the rest.
    """

    samples: Sequence[Sample]
    masks: Masks | None
    in_memory: int
    scratch: Path


@dataclass(eq=False)
class Propagation:
    """The calibration samples before the decoder layer that is quantized next."""

    decoder: Decoder
    around: Callable[[], AbstractContextManager[object]]
    scheme: SchemeParams
    settings: StatisticsParams
    again: SetAgain
    ordered: list[Sample]
    device: Any
    calls: DecoderCalls = field(init=False)
    streams: Streams = field(init=False)
    gain: Gain | None = None

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        around: Callable[[], AbstractContextManager[object]],
        scheme: SchemeParams,
        settings: StatisticsParams,
        again: SetAgain,
        device: Any,
    ) -> Propagation:
        """Make every check that needs no weight.

        Args:
            around: context in which the weights outside the decoder layers are in memory.
            settings: of the stored statistics.

        Raises:
            ValueError: as `propagated`.
        """
        own = settings_of(settings, scheme, again.masks)
        return cls(decoder, around, scheme, own, again, in_order(decoder.model, again.samples), device)

    def begin(self, pieces: Pieces, last: str | None) -> None:
        """Put the samples before the first layer, or behind the part `last`, which is on disk."""
        paired = self.scheme.correction > 0
        share = self.again.in_memory // (2 if paired else 1)
        hidden, base = (_OnDevice(HiddenStates(share, self.again.scratch), self.device) for _ in range(2))
        self.calls = DecoderCalls(self.decoder, self.around)
        self.streams = Streams(hidden, base, paired, self.again.scratch)
        with self.around():
            for row, (_, ids) in enumerate(self.ordered):
                hidden[row] = start = self.calls.begin(ids)
                if paired:
                    base[row] = start
            self.gain = Gain(self.decoder, self.ordered, self.scheme)
        if last is not None:
            for rows, name, row in self._places():
                rows[row] = pieces.tensor(states_after(last), name).to(self.device)

    def through(self, part: str, stored: Mapping[str, Layer]) -> PropagatedLayer:
        """Quantize the decoder layer in memory from its inputs behind the quantized layers before it, and advance.

        Args:
            stored: its matrices, quantized from the stored statistics.
        """
        assert self.gain is not None
        number = self.decoder.names.index(part)
        matrices = {name: matrix_of(self.decoder.model, name) for name in stored}
        solve = solver(stored, matrices, self.scheme)
        calls = [self.calls.call(number, ids) for _, ids in self.ordered]
        own = self.settings, solve, self.scheme, self.again.masks, self.streams
        found = through(self.decoder, number, self.ordered, list(stored), *own, calls)
        self.gain.through(number, stored, found.layers, [self.calls.call(number, ids) for ids in self.gain.samples])
        self.streams.advance(calls)
        return found

    def states(self) -> Iterator[Mapping[str, Tensor]]:
        """What a later run needs to go on from here."""
        for rows, name, row in self._places():
            yield {name: rows[row]}

    def _places(self) -> Iterator[tuple[Any, str, int]]:
        assert self.gain is not None
        kinds = {"hidden": self.streams.hidden} | ({"base": self.streams.base} if self.streams.paired else {})
        for kind, rows in kinds.items():
            yield from ((rows, f"{kind}.{row}", row) for row in range(len(self.ordered)))
        for kind in ("base", "before", "after"):
            yield from ((getattr(self.gain, kind), f"gain.{kind}.{row}", row) for row in range(len(self.gain.samples)))


class _OnDevice:
    """Hidden states, of which some are on disk, on the device of the model."""

    def __init__(self, hidden: HiddenStates, device: Any) -> None:
        self._hidden, self._device = hidden, device

    def __getitem__(self, row: int, /) -> Tensor:
        return self._hidden[row].to(self._device)

    def __setitem__(self, row: int, hidden: Tensor, /) -> None:
        self._hidden[row] = hidden
