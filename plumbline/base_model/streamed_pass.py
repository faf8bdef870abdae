"""One sequence through a model of which one part is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from plumbline.base_model.decoder import Decoder
from plumbline.base_model.names import outside, within
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.streamed_quantized import StreamedQuantized


def outputs(streamed: StreamedModel | StreamedQuantized, ids: Sequence[int]) -> Iterator[Tensor]:
    """The hidden states after every decoder layer, in order, and last the logits.

    Raises:
        ValueError: the model cannot be run layer by layer.
    """
    decoder = Decoder(streamed.model)
    around = outside(decoder.name)
    with streamed.present(around):
        start = decoder.start(ids)
    hidden = start.hidden
    for number, (name, call) in enumerate(zip(decoder.names, start.calls, strict=True)):
        with streamed.present(within(name)):
            hidden = decoder.run(number, hidden, call)
        yield hidden
    with streamed.present(around):
        logits = decoder.logits(ids, hidden)
    yield logits
