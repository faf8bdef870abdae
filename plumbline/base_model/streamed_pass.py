"""One sequence through a model of which one part is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from plumbline.base_model.decoder import Decoder
from plumbline.base_model.grouped_products import GroupedProducts
from plumbline.base_model.large_mixture import large_mixture
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
        hidden = _output(streamed, name, partial(decoder.run, number, hidden, call))
        yield hidden
    with streamed.present(around):
        logits = decoder.logits(ids, hidden)
    yield logits


def _output(streamed: StreamedModel | StreamedQuantized, layer: str, run: Callable[[], Tensor]) -> Tensor:
    """What a layer computes; of large experts, some are in memory at a time."""
    mixture = large_mixture(streamed, layer)
    if mixture is None:
        with streamed.present(within(layer)):
            return run()
    others = mixture.others(within(layer))
    with GroupedProducts() as products:
        for matrix in mixture.matrices:
            with streamed.present(others):
                products.until(0, run)
            for _ in mixture.multiplied(streamed, products, matrix):
                pass
        with streamed.present(others), products.known(0):
            return run()
