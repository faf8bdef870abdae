"""Sequences through a model of which one part is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

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
        (hidden,) = layer_outputs(streamed, name, 1, lambda _: decoder.run(number, hidden, call))  # noqa: B023
        yield hidden
    with streamed.present(around):
        logits = decoder.logits(ids, hidden)
    yield logits


def layer_outputs(
    streamed: StreamedModel | StreamedQuantized,
    layer: str,
    samples: int,
    run: Callable[[int], Tensor],
    scratch: Path | None = None,
) -> Iterator[Tensor]:
    """What a decoder layer computes for each sample, in order; of large experts, some are in memory at a time.

    Args:
        run: (number of the sample) -> its pass through the layer, which is repeated where the experts are large.
        scratch: an existing folder for what the experts compute; None: where temporary files are.
    """
    mixture = large_mixture(streamed, layer)
    if mixture is None:
        with streamed.present(within(layer)):
            yield from map(run, range(samples))
        return
    others = mixture.others(within(layer))
    with GroupedProducts(scratch) as products:
        for matrix in mixture.matrices:
            with streamed.present(others):
                for sample in range(samples):
                    products.until(sample, partial(run, sample))
            for _ in mixture.multiplied(streamed, products, matrix):
                pass
        with streamed.present(others):
            for sample in range(samples):
                with products.known(sample):
                    output = run(sample)
                yield output
