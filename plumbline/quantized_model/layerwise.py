"""Quantizing a model that does not fit into memory: one decoder layer after the other, each written before the next.

Memory holds the weights of one layer, what they become, and the statistics of the sites that are being solved. The
bytes are those of the whole model: every site is solved by itself, by the same functions.

The parts are the decoder layers and, last, what is outside them. A part that is on disk is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.resumable import states_after
from plumbline.activation_stats.stored import StoredStatistics
from plumbline.base_model.as_quantized import called_as_quantized
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.in_parallel import in_parallel
from plumbline.base_model.matrices import Matrix, matrix_of
from plumbline.base_model.names import Names, outside
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.streamed_pass import outputs
from plumbline.file_mode import follow_umask
from plumbline.quantized_model.export import (
    MAX_SHARD_SIZE,
    StoredNames,
    describe,
    kept_tensors,
    tensors_of_layers,
)
from plumbline.quantized_model.fold_search import FoldCheck
from plumbline.quantized_model.folding import Transform, transform_notes
from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.kv_cache import (
    CacheScales,
    cache_record,
    cache_scales,
    cache_tensors,
    recorded_cache,
    require_cached,
)
from plumbline.quantized_model.kv_cache_layers import cached_attention
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.layerwise_check import require_loads_layerwise
from plumbline.quantized_model.layerwise_mixed import OUTSIDE, mixed_layer_by_layer, parts_of, selected
from plumbline.quantized_model.layerwise_propagate import Propagation, SetAgain
from plumbline.quantized_model.load_check import TOKENS
from plumbline.quantized_model.outcome import Outcome
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantization_config import ConfigTarget
from plumbline.quantized_model.quantize import (
    FEW,
    Grouped,
    grouped,
    notes_of,
    quantize_transformed,
    transform_of,
)
from plumbline.quantized_model.quantize_site import quantize_site
from plumbline.quantized_model.record import layer_record
from plumbline.quantized_model.scheme import grid_of_scheme
from plumbline.quantized_model.simulate import simulate
from plumbline.quantized_model.weight_shards import write_shards

COMPUTED = "computed"
"""What a simulated part computes for the sample of the check: a part of its own, and the name of its tensor."""


@torch.no_grad()
def quantized_layer_by_layer(
    streamed: StreamedModel,
    stats: StoredStatistics,
    scheme: SchemeParams,
    out: Path,
    pieces: Pieces,
    ids: Sequence[int],
    again: SetAgain,
    trust_remote_code: bool = False,
    done: Callable[[str], object] = lambda part: None,
) -> Outcome:
    """Quantize the base model and write a folder, with the bytes that quantizing it whole gives.

    Args:
        streamed: the base model.
        stats: of the calibration set.
        out: an existing folder.
        pieces: where the parts wait until all are there.
        ids: tokens of a sample, with which the result is held against its simulation.
        again: read if the scheme runs the calibration set again (`propagate: quantized`).
        done: called with the name of each part that is on disk.

    Raises:
        ValueError: the scheme does not suit the model or the statistics, the model cannot be run layer by layer, or
            what was written does not load as it was simulated.
    """
    walk = _Layers.of(streamed, stats, scheme, ids[:TOKENS], pieces, again)
    hidden: Tensor | None = None
    parts, ready = walk.parts, walk.ready(pieces)
    if walk.propagation is not None and ready < len(parts):
        walk.propagation.begin(pieces, parts[ready - 1] if ready else None)
    for number, name in enumerate(parts):
        if number >= ready:
            hidden = walk.write(name, pieces, hidden)
            if number:
                pieces.remove(states_after(parts[number - 1]))
        else:
            hidden = pieces.tensor(computed_by(name), COMPUTED)
        done(name)
    return walk.finish(pieces, out, trust_remote_code)


def computed_by(part: str) -> str:
    """Name of the part that holds what `part` computes."""
    return f"{part}.{COMPUTED}"


@dataclass(frozen=True, eq=False)
class _Layers:
    """A model that is quantized part by part."""

    streamed: StreamedModel
    stats: StoredStatistics
    scheme: SchemeParams
    ids: Sequence[int]
    decoder: Decoder
    calls: DecoderCalls
    work: Grouped
    names: StoredNames
    check: FoldCheck | None
    bits: Mapping[str, int]
    notes: dict[str, Any]
    propagation: Propagation | None

    @classmethod
    def of(
        cls,
        streamed: StreamedModel,
        stats: StoredStatistics,
        scheme: SchemeParams,
        ids: Sequence[int],
        pieces: Pieces,
        again: SetAgain,
    ) -> _Layers:
        """Make every check that needs no weight, and the first pass, if there is one."""
        model, outline = streamed.model, stats.outline()
        decoder = Decoder(model)
        if scheme.kv_cache is not None:
            require_cached(outline, cached_attention(model, scheme.kv_cache), scheme.kv_cache)
        full_precision = scheme.model_copy(update={"propagate": "full_precision"})
        work = grouped(model, outline, full_precision, partial(_called, streamed))
        around, notes = partial(streamed.present, outside(decoder.name)), notes_of(scheme)
        bits: Mapping[str, int] = {name: own.weight_bits for name, own in work.schemes.items()}
        if scheme.mixed is not None:
            mixed = mixed_layer_by_layer(streamed, decoder, work.matrices, stats, full_precision, pieces)
            bits, notes["mixed"] = mixed.bits, mixed.facts
        check = None if scheme.transform is None else FoldCheck.of(model, around)
        propagation = None
        if scheme.propagate == "quantized":
            propagation = Propagation.of(decoder, around, scheme, stats.settings, again, streamed.device)
        names, calls = StoredNames(model, work.matrices), DecoderCalls(decoder, around)
        return cls(streamed, stats, scheme, ids, decoder, calls, work, names, check, bits, notes, propagation)

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in the order in which they are made."""
        return parts_of(self.decoder)

    def selected(self, part: str) -> Names:
        """Selects the weights and modules of a part."""
        return selected(self.decoder, part)

    def ready(self, pieces: Pieces) -> int:
        """Number of the parts, from the first, that are on disk with all that the next one needs."""

        def complete(part: str) -> bool:
            return pieces.facts(part) is not None and pieces.facts(computed_by(part)) is not None

        number = len(list(takewhile(complete, self.parts)))
        lost = number and pieces.facts(states_after(self.parts[number - 1])) is None
        return 0 if self.propagation is not None and number < len(self.parts) and lost else number

    def write(self, part: str, pieces: Pieces, hidden: Tensor | None) -> Tensor:
        """Quantize and write a part.

        Args:
            hidden: what the part before computes when it is simulated; None: this is the first.

        Returns:
            What this part computes: hidden states, or the logits.
        """
        inside, model = self.selected(part), self.streamed.model
        if hidden is None:
            with self.streamed.present(outside(self.decoder.name)):
                hidden = self.calls.begin(self.ids)
        with self.streamed.present(inside):
            transform = self._transform(inside)
            layers = self._solved([names for names in self.work.groups if inside(names[0])], transform)
            layers, propagated = self._propagated(part, layers)
            parameters = {} if transform is None else transform.parameters
            cache = self._cache(inside, {} if transform is None else transform.rows)
        with self.streamed.present(self._unquantized(inside)):
            quantized = Quantized(layers, parameters, dense=self.work.dense, cache=cache)
            computed = self._simulated(part, quantized, hidden)
            targets: list[dict[str, Any]] = []
            facts = {
                "layers": {name: layer_record(layer) for name, layer in layers.items()},
                "targets": targets,
                "cache": cache_record(cache),
                "transform": None if transform is None else [transform.facts, transform.unfolded],
                "propagate": propagated,
            }

            def tensors() -> Iterator[Mapping[str, Tensor]]:
                yield kept_tensors(model, self.work.matrices, parameters, inside)
                for target, stored in tensors_of_layers(self.names, layers, self.scheme):
                    targets.append(_plain(target, list(stored)))
                    yield stored
                yield cache_tensors(model, cache)

            pieces.write(computed_by(part), [{COMPUTED: computed}], {})
            if self.propagation is not None and part != OUTSIDE:
                pieces.write(states_after(part), self.propagation.states(), {})
            pieces.write(part, tensors(), facts)
        return computed

    def _unquantized(self, inside: Names) -> Names:
        """Selects the weights of a part that stay as they are; the others make room for what they become."""
        quantized = {f"{matrix.owner}.{matrix.part}" for matrix in self.work.matrices.values()}
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
        matrices = {name: matrix_of(self.streamed.model, name) for name in self.work.matrices if inside(name)}
        sizes = self.work.sizes
        return transform_of(
            self.streamed.model, matrices, self.stats.part(inside), self.scheme, self.bits, sizes, self.check
        )

    def _cache(self, inside: Names, rows: Mapping[str, Tensor]) -> dict[str, CacheScales]:
        """The scales of a part's keys and values."""
        params = self.scheme.kv_cache
        if params is None:
            return {}
        return cache_scales(self.streamed.model, self.stats, params, rows, self.streamed.device, inside)

    def _solved(self, groups: Sequence[list[str]], transform: Transform | None) -> dict[str, Layer]:
        """Quantize some groups, the statistics of a site in memory while it is solved."""
        work, model = self.work, self.streamed.model

        def solve(names: list[str]) -> dict[str, Layer]:
            first = names[0]
            site = self.stats.sites[work.sites[first].members[0]] if first in work.sites else None
            own, size = work.schemes[first], work.sizes[first]
            members = {name: matrix_of(model, name).weight.contiguous() for name in names}
            grid = grid_of_scheme(own, self.bits.get(first), size)
            if transform is None:
                return quantize_site(members, site, grid, own)
            return quantize_transformed(transform, members, site, grid, own, errors=True)

        parts = in_parallel([partial(solve, names) for names in groups], list(map(work.cost, groups)))
        layers = {name: layer for part in parts for name, layer in part.items()}
        return {name: layers[name] for name in work.matrices if name in layers}

    def _simulated(self, part: str, quantized: Quantized, hidden: Tensor) -> Tensor:
        """What the quantized part computes, as `simulate` does."""
        decoder = Decoder(simulate(self.streamed.model, quantized, self.scheme, shared=True))
        if part == OUTSIDE:
            return decoder.logits(self.ids, hidden)
        number = self.decoder.names.index(part)
        return decoder.run(number, hidden, self.calls.call(number, self.ids))

    def finish(self, pieces: Pieces, out: Path, trust_remote_code: bool) -> Outcome:
        """Write the folder from the parts, and load it again."""
        model, matrices = self.streamed.model, self.work.matrices
        facts = [pieces.facts(part) or {} for part in self.parts]
        rows = _in_order(facts, matrices)
        order = [*kept_tensors(model, matrices, {}), *(key for row in rows for key in row["keys"])]
        record = {name: own for fact in facts for name, own in fact["cache"].items()}
        wanted = {} if self.scheme.kv_cache is None else cached_attention(model, self.scheme.kv_cache)
        cache = recorded_cache({name: record[name] for name in wanted}, model.dtype, self.streamed.device)
        order += list(cache_tensors(model, cache))
        model.save_pretrained(out, state_dict={}, save_original_format=False)
        write_shards(pieces, self.parts, order, out, MAX_SHARD_SIZE, model.num_parameters())
        follow_umask(out.glob("*.safetensors"))
        targets = [self._target(row) for row in rows]
        describe(self.names, targets, self.scheme, self.work.dense, self.streamed.folder, out)
        hidden = {part: partial(pieces.tensor, computed_by(part), COMPUTED) for part in self.parts}
        loads = require_loads_layerwise(out, self.ids, hidden, str(self.streamed.device), trust_remote_code)
        records = {name: entry for fact in facts for name, entry in fact["layers"].items()}
        layers = {name: records[name] for name in matrices}
        files = sorted(path.name for path in out.glob("*.safetensors"))
        return Outcome(files, layers, self._notes(facts), self.work.left, cache, loads)

    def _notes(self, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The notes of the model, from the facts of all parts."""
        if self.propagation is not None:
            *layers, gain = [fact["propagate"] for fact in facts]
            uncorrected = {name: reason for part in layers for name, reason in part.items()}
            return self.notes | {"propagate": gain | ({"uncorrected": uncorrected} if uncorrected else {})}
        if self.scheme.transform is None:
            return self.notes
        parts = [fact["transform"] for fact in facts]
        sites = {name: site for own, _ in parts for name, site in own["sites"].items()}
        unfolded = {name: reason for _, missing in parts for name, reason in missing.items()}
        remarks = self.notes.get("remarks", [])
        return self.notes | transform_notes(self.scheme.transform, {**parts[0][0], "sites": sites}, unfolded, remarks)

    def _target(self, row: Mapping[str, Any]) -> ConfigTarget:
        grid = dict(row["grid"])
        grid["block"] = None if grid["block"] is None else tuple(grid["block"])
        activations = None if row["expert"] else self.work.schemes[row["name"]].activations
        return ConfigTarget(row["name"], Grid(**grid), activations, row["expert"])


def _in_order(facts: Sequence[Mapping[str, Any]], matrices: Mapping[str, Matrix]) -> list[dict[str, Any]]:
    """The targets of all parts in the order of `export`: Linears, then experts, each in the model's order."""
    places = {name: number for number, name in enumerate(matrices)}
    linears = [row for fact in facts for row in fact["targets"] if not row["expert"]]
    mixtures = [fact for fact in facts if any(row["expert"] for row in fact["targets"])]
    mixtures.sort(key=lambda fact: min(places[n] for n in fact["layers"] if matrices[n].expert is not None))
    experts = [row for fact in mixtures for row in fact["targets"] if row["expert"]]
    return [*sorted(linears, key=lambda row: places[row["name"]]), *experts]


def _plain(target: ConfigTarget, keys: list[str]) -> dict[str, Any]:
    return {"name": target.name, "grid": asdict(target.grid), "expert": target.expert, "keys": keys}


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
