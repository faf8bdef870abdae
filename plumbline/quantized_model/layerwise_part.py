"""One part of a model that is quantized layer by layer: solved, simulated, and on disk with its facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.resumable import states_after
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.experts import expert_of, expert_renumbered
from plumbline.base_model.in_parallel import in_parallel
from plumbline.base_model.large_mixture import LargeMixture
from plumbline.base_model.matrices import matrix_of
from plumbline.base_model.names import OUTSIDE, Names, within
from plumbline.quantized_model.export import kept_tensors, tensors_of_layers
from plumbline.quantized_model.fold_search import FoldCheck
from plumbline.quantized_model.folding import Transform
from plumbline.quantized_model.kv_cache import CacheScales, cache_record, cache_scales, cache_tensors
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.layerwise_experts import run_quantized, solved_apart
from plumbline.quantized_model.layerwise_model import LayerwiseModel
from plumbline.quantized_model.layerwise_parts import COMPUTED, computed_by
from plumbline.quantized_model.layerwise_propagate import Propagation
from plumbline.quantized_model.quantization_config import ConfigTarget
from plumbline.quantized_model.quantize import quantize_transformed, transform_of
from plumbline.quantized_model.quantize_site import quantize_site
from plumbline.quantized_model.record import layer_record
from plumbline.quantized_model.scheme import grid_of_scheme
from plumbline.quantized_model.simulate import simulate


@dataclass(frozen=True, eq=False)
class PartWriter:
    """Quantizes and writes the parts of a model, one after the other.

    Attributes:
        ids: tokens of the sample of the check.
        calls: of the decoder layers, for that sample.
        check: of a transform; None: the scheme has none.
        propagation: None: the scheme does not run the calibration set again.
    """

    whole: LayerwiseModel
    ids: Sequence[int]
    pieces: Pieces
    calls: DecoderCalls
    check: FoldCheck | None
    propagation: Propagation | None

    def write(self, part: str, hidden: Tensor | None) -> Tensor:
        """Quantize and write a part.

        Args:
            hidden: what the part before computes when it is simulated; None: this is the first.

        Returns:
            What this part computes: hidden states, or the logits.
        """
        whole, inside = self.whole, self.whole.selected(part)
        mixture = None
        if part != OUTSIDE:
            mixture = solved_apart(whole.streamed, part, whole.scheme, whole.work.matrices)
        if hidden is None:
            with whole.around():
                hidden = self.calls.begin(self.ids)
        experts = {} if mixture is None else self._solved_experts(mixture)
        with whole.streamed.present(inside if mixture is None else mixture.others(inside)):
            transform = self._transform(inside)
            layers = self._solved([names for names in self._groups(inside) if names[0] not in experts], transform)
            layers = self._in_order(layers | experts)
            layers, propagated = self._propagated(part, layers)
            parameters = {} if transform is None else transform.parameters
            cache = self._cache(inside, {} if transform is None else transform.rows)
        quantized = Quantized(layers, parameters, dense=whole.work.dense, cache=cache)
        facts = {
            "layers": {name: layer_record(layer) for name, layer in layers.items()},
            "cache": cache_record(cache),
            "transform": None if transform is None else [transform.facts, transform.unfolded],
            "propagate": propagated,
        }
        with whole.streamed.present(self._unquantized(inside)):
            computed = self._simulated(part, quantized, hidden, mixture)
            self.pieces.write(computed_by(part), [{COMPUTED: computed}], {})
            if self.propagation is not None and part != OUTSIDE:
                self.pieces.write(states_after(part), self.propagation.states(), {})
            self._write(part, quantized, facts)
        return computed

    def _write(self, part: str, quantized: Quantized, facts: dict[str, Any]) -> None:
        """Write the tensors of a part, and its facts with those of the tensors."""
        whole, inside = self.whole, self.whole.selected(part)
        targets: list[dict[str, Any]] = []

        def tensors() -> Iterator[Mapping[str, Tensor]]:
            yield kept_tensors(whole.model, whole.work.matrices, quantized.parameters, inside)
            for target, stored in tensors_of_layers(whole.names, quantized.layers, whole.scheme):
                targets.append(_plain(target, list(stored)))
                yield stored
            yield cache_tensors(whole.model, quantized.cache)

        self.pieces.write(part, tensors(), facts | {"targets": targets})

    def _unquantized(self, inside: Names) -> Names:
        """Selects the weights of a part that stay as they are; the others make room for what they become."""
        quantized = {f"{matrix.owner}.{matrix.part}" for matrix in self.whole.work.matrices.values()}
        return lambda name: inside(name) and name not in quantized

    def _propagated(self, part: str, stored: dict[str, Layer]) -> tuple[dict[str, Layer], dict[str, Any]]:
        """What propagation makes of a part, and what it notes: of a layer, its sites that a correction left out; last,
        what propagation gained."""
        if self.propagation is None:
            return stored, {}
        if part == OUTSIDE:
            assert self.propagation.gain is not None
            return stored, self.propagation.gain.result()
        propagated = self.propagation.through(part, stored)
        return stored | propagated.layers, propagated.uncorrected

    def _transform(self, inside: Names) -> Transform | None:
        """The transform of a part. It changes nothing outside: a scale is folded within its decoder layer."""
        whole = self.whole
        matrices = {name: matrix_of(whole.model, name) for name in whole.work.matrices if inside(name)}
        known = whole.scheme, whole.bits, whole.work.sizes, self.check
        return transform_of(whole.model, matrices, whole.stats.part(inside), *known)

    def _cache(self, inside: Names, rows: Mapping[str, Tensor]) -> dict[str, CacheScales]:
        """The scales of a part's keys and values."""
        whole, params = self.whole, self.whole.scheme.kv_cache
        if params is None:
            return {}
        return cache_scales(whole.model, whole.stats, params, rows, whole.streamed.device, inside)

    def _groups(self, inside: Names) -> list[list[str]]:
        """The groups of matrices of a part that are quantized together."""
        return [names for names in self.whole.work.groups if inside(names[0])]

    def _in_order(self, layers: Mapping[str, Layer]) -> dict[str, Layer]:
        return {name: layers[name] for name in self.whole.work.matrices if name in layers}

    def _solved(self, groups: Sequence[list[str]], transform: Transform | None, first: int = 0) -> dict[str, Layer]:
        """Quantize some groups, the statistics of a site in memory while it is solved.

        Args:
            first: of experts: the one from which on their module holds experts.
        """
        whole, work = self.whole, self.whole.work

        def solve(names: list[str]) -> dict[str, Layer]:
            first_name = names[0]
            site = whole.stats.sites[work.sites[first_name].members[0]] if first_name in work.sites else None
            own, size = work.schemes[first_name], work.sizes[first_name]
            held = {name: expert_renumbered(name, -first) if first else name for name in names}
            members = {name: matrix_of(whole.model, held[name]).weight.contiguous() for name in names}
            grid = grid_of_scheme(own, whole.bits.get(first_name), size)
            if transform is None:
                return quantize_site(members, site, grid, own)
            return quantize_transformed(transform, members, site, grid, own, errors=True)

        parts = in_parallel([partial(solve, names) for names in groups], list(map(work.cost, groups)))
        return {name: layer for part in parts for name, layer in part.items()}

    def _solved_experts(self, mixture: LargeMixture) -> dict[str, Layer]:
        """Quantize the experts of a part, some of them in memory."""
        groups, layers = self._groups(within(mixture.name)), dict[str, Layer]()
        for experts in mixture.groups(mixture.experts):
            with self.whole.streamed.experts(mixture.name, mixture.matrices, experts):
                some = [names for names in groups if expert_of(names[0]) in experts]
                layers |= self._solved(some, None, experts.start)
        return layers

    def _simulated(self, part: str, quantized: Quantized, hidden: Tensor, mixture: LargeMixture | None) -> Tensor:
        """What the quantized part computes, as `simulate` does."""
        layers = quantized.layers
        if mixture is not None:
            layers = {name: layer for name, layer in layers.items() if not within(mixture.name)(name)}
        present = replace(quantized, layers=layers)
        decoder = Decoder(simulate(self.whole.model, present, self.whole.scheme, shared=True))
        if part == OUTSIDE:
            return decoder.logits(self.ids, hidden)
        number = self.whole.decoder.names.index(part)
        run = partial(decoder.run, number, hidden, self.calls.call(number, self.ids))
        return run() if mixture is None else run_quantized(mixture, quantized.layers, run)


def _plain(target: ConfigTarget, keys: list[str]) -> dict[str, Any]:
    return {"name": target.name, "grid": asdict(target.grid), "expert": target.expert, "keys": keys}
