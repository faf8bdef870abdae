"""A model on disk and a scheme: what is known of the quantized model before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.stored import StoredStatistics
from plumbline.base_model.as_quantized import called_as_quantized
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.names import Names, outside
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.streamed_pass import outputs
from plumbline.quantized_model.export import StoredNames
from plumbline.quantized_model.kv_cache import require_cached
from plumbline.quantized_model.kv_cache_layers import cached_attention
from plumbline.quantized_model.layerwise_mixed import mixed_layer_by_layer
from plumbline.quantized_model.layerwise_parts import parts_of, selected
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import FEW, Grouped, grouped, notes_of


@dataclass(frozen=True, eq=False)
class LayerwiseModel:
    """A model that is quantized part by part."""

    streamed: StreamedModel
    stats: StoredStatistics
    scheme: SchemeParams
    decoder: Decoder
    work: Grouped
    names: StoredNames
    bits: Mapping[str, int]
    notes: dict[str, Any]

    @classmethod
    def of(
        cls, streamed: StreamedModel, stats: StoredStatistics, scheme: SchemeParams, pieces: Pieces
    ) -> LayerwiseModel:
        """Make every check that needs no weight, and the first pass, if there is one."""
        model, outline = streamed.model, stats.outline()
        decoder = Decoder(model)
        if scheme.kv_cache is not None:
            require_cached(outline, cached_attention(model, scheme.kv_cache), scheme.kv_cache)
        full_precision = scheme.model_copy(update={"propagate": "full_precision"})
        work, notes = grouped(model, outline, full_precision, partial(_called, streamed)), notes_of(scheme)
        bits: Mapping[str, int] = {name: own.weight_bits for name, own in work.schemes.items()}
        if scheme.mixed is not None:
            mixed = mixed_layer_by_layer(streamed, decoder, work.matrices, stats, full_precision, pieces)
            bits, notes["mixed"] = mixed.bits, mixed.facts
        return cls(streamed, stats, scheme, decoder, work, StoredNames(model, work.matrices), bits, notes)

    @property
    def model(self) -> PreTrainedModel:
        """The base model; weights are there within `streamed.present`."""
        return self.streamed.model

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in the order in which they are made."""
        return parts_of(self.decoder)

    def selected(self, part: str) -> Names:
        """Selects the weights and modules of a part."""
        return selected(self.decoder, part)

    def around(self) -> AbstractContextManager[None]:
        """Context in which the weights outside the decoder layers are in memory."""
        return self.streamed.present(outside(self.decoder.name))


def _called(streamed: StreamedModel, names: Sequence[str]) -> set[str]:
    """Which of these modules the model calls for a few tokens."""
    seen: set[str] = set()
    model: PreTrainedModel = streamed.model
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.add(name))  # type: ignore[misc]
        for name in names
    ]
    try:
        with called_as_quantized(model):
            for _ in outputs(streamed, range(FEW)):
                pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
