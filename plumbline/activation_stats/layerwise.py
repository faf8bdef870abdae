"""Statistics of a model that does not fit into memory: runs all samples through one decoder layer, then the next.

Memory holds the weights of one layer, the totals of its sites, and the hidden states of the samples, which go to disk
beyond a limit. The bits are those of `collect`: every sample goes through the same operations by itself, and every sum
has the same order.

Where the experts of a layer are large, memory holds some of them at a time, or all else of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from plumbline.activation_stats.expert_calls import ExpertCalls, experts_at_a_time, groups_of, layer_name
from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.totals import Masks, Sample, Totals, in_order
from plumbline.base_model.as_quantized import called_as_quantized
from plumbline.base_model.cache import caching_modules
from plumbline.base_model.decoder import Call, Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.experts import are_fused_experts, expert_of
from plumbline.base_model.grouped_products import GroupedProducts
from plumbline.base_model.inputs import LinearInputs, Visit, network_of, output_layers, watched_layers
from plumbline.base_model.large_mixture import LargeMixture, large_mixture
from plumbline.base_model.names import OUTSIDE, Names, outside, within
from plumbline.base_model.streamed import StreamedModel

IN_MEMORY = 4 << 30
"""Bytes of hidden states that are kept in memory."""

Progress = Callable[[int], object]
"""Called with the number of tokens that are done."""
Run = Callable[[int, Sequence[int], LinearInputs], None]
"""(row, token ids, observer of the layers) -> None: runs one sample through the modules in memory."""


@dataclass(frozen=True, eq=False)
class CollectionInputs:
    """What decides the statistics of a model."""

    samples: Sequence[Sample]
    settings: StatisticsParams
    base_model_digest: str
    fingerprint: str
    """Of the tokenization."""
    masks: Masks | None = None


def layer_by_layer(
    streamed: StreamedModel,
    inputs: CollectionInputs,
    scratch: Path,
    progress: Progress | None = None,
    in_memory: int = IN_MEMORY,
) -> Iterator[ActivationStats]:
    """Yield what `collect` returns, in parts: the sites of each decoder layer, then those outside the layers.

    The experts of a layer follow in parts of their own, where their totals are too many to be in memory together.

    Args:
        scratch: an existing folder for hidden states beyond `in_memory` bytes.
        progress: called after each sample and layer with the sample's number of tokens.

    Raises:
        ValueError: as `collect`, or the model cannot be run layer by layer.
    """
    collection = Collection(streamed, inputs, progress)
    with HiddenStates(in_memory, scratch) as hidden:
        collection.begin(hidden)
        for name in collection.names:
            yield from collection.part(name, hidden)


class Collection:
    """The statistics of a streamed model in parts, in the order in which they must be made."""

    def __init__(self, streamed: StreamedModel, inputs: CollectionInputs, progress: Progress | None = None) -> None:
        """Find the sites; no weight is read. Arguments and errors as of `layer_by_layer`."""
        self.walk = _Walk(streamed, inputs.settings)
        self.ordered = in_order(streamed.model, inputs.samples)
        self.progress, self.settings = progress, inputs.settings
        known = inputs.base_model_digest, inputs.fingerprint, inputs.masks
        self._totals = partial(Totals, self.ordered, inputs.settings, *known)
        around = any(map(self.walk.outside, (*self.walk.layers, *self.walk.outputs)))
        self.names = (*self.walk.decoder.names, *((OUTSIDE,) if around else ()))
        """Of the parts: the decoder layers, then what is outside them, if it has sites."""

    def begin(self, hidden: HiddenStates) -> None:
        """Put the input of the first layer for each sample, in order, into `hidden`."""
        self.walk.begin(self.ordered, hidden)

    def part(self, name: str, hidden: HiddenStates) -> Iterator[ActivationStats]:
        """Yield the statistics of one part, from what the part before it computes, in `hidden`, which is its own
        output by the time the last is yielded."""
        walk = self.walk
        if name == OUTSIDE:
            yield walk.observed(self._totals(), walk.outside, walk.around, partial(walk.finish, hidden), self.progress)
            return
        number, inside = walk.decoder.names.index(name), within(name)
        if (mixture := large_mixture(walk.streamed, name)) is not None:
            yield from self._some_experts_at_a_time(mixture, number, hidden)
            return
        experts = {part: layer for part, layer in walk.layers.items() if inside(part) and are_fused_experts(layer)}
        run = partial(walk.through, hidden, number)
        if len(groups := groups_of(experts, self.settings)) < 2:
            yield walk.observed(self._totals(), inside, inside, run, self.progress)
            return
        with ExpertCalls({layer_name(part): layer for part, layer in experts.items()}, hidden.scratch) as calls:

            def noted(row: int, ids: Sequence[int], inputs: LinearInputs) -> None:
                with calls.noted(row):
                    run(row, ids, inputs)

            others = partial(_but, inside, experts)
            yield walk.observed(self._totals(), others, inside, noted, self.progress)
            with walk.streamed.present(inside):
                for group in groups:
                    yield calls.observed(self._totals(), group, self.settings.expert_tokens)

    def _some_experts_at_a_time(
        self, mixture: LargeMixture, number: int, hidden: HiddenStates
    ) -> Iterator[ActivationStats]:
        """The statistics of a layer with the weights of some experts in memory, or those of all but the experts."""
        walk, inside = self.walk, within(self.walk.decoder.names[number])
        (first, second), experts = mixture.matrices, {mixture.name: mixture.module}
        watched = {part: layer for part, layer in walk.layers.items() if within(mixture.name)(part)}
        at_a_time = experts_at_a_time(mixture.module, self.settings) if watched else mixture.experts
        others = mixture.others(inside)

        with ExpertCalls(experts, hidden.scratch) as calls, GroupedProducts(hidden.scratch) as products:

            def until_unknown(noted: Callable[[int], AbstractContextManager[None]]) -> None:
                with walk.streamed.present(others), called_as_quantized(walk.decoder.model):
                    for row, (_, ids) in enumerate(self.ordered):
                        given = walk.given(hidden, number, row, ids)
                        with noted(row):
                            products.until(row, partial(walk.decoder.run, number, *given))

            def through(row: int, ids: Sequence[int], inputs: LinearInputs) -> None:
                with products.known(row):
                    walk.through(hidden, number, row, ids, inputs)

            until_unknown(calls.noted)
            for group in mixture.multiplied(walk.streamed, products, first, at_a_time):
                if names := [name for name in watched if expert_of(name) in group]:
                    yield calls.observed(self._totals(), names, self.settings.expert_tokens, group.start)
            until_unknown(lambda row: nullcontext())
            for _ in mixture.multiplied(walk.streamed, products, second):
                pass
            yield walk.observed(self._totals(), partial(_but, inside, watched), others, through, self.progress)


def _but(inside: Names, left_out: Container[str], name: str) -> bool:
    return inside(name) and name not in left_out


class _Walk:
    """The decoder layers of a streamed model and the modules that are observed."""

    def __init__(self, streamed: StreamedModel, settings: StatisticsParams) -> None:
        model = streamed.model
        self.streamed, self.decoder = streamed, Decoder(model)
        self.layers = watched_layers(model, settings.ignore)
        self.outputs = output_layers(model, settings.outputs)
        self.caching = caching_modules(model) if settings.cache else {}
        self.network = network_of(model, {**self.layers, **self.outputs})
        names = (f"{name}." if name else "" for name, module in model.named_modules() if module is self.network)
        self._prefix = next(names)
        self.calls = DecoderCalls(self.decoder, partial(streamed.present, self.around))

    def outside(self, name: str) -> bool:
        """Whether a module or weight is outside the decoder layers."""
        return outside(self.decoder.name)(name)

    def around(self, weight: str) -> bool:
        """Whether a weight outside the layers is needed: that of an output projection only if it is observed."""
        return weight.startswith(self._prefix) and self.outside(weight)

    def begin(self, ordered: Sequence[Sample], hidden: HiddenStates) -> None:
        """Store the input of the first layer for each sample."""
        with self.streamed.present(self.around):
            for row, (_, ids) in enumerate(ordered):
                hidden[row] = self.calls.begin(ids)

    def through(self, hidden: HiddenStates, number: int, row: int, ids: Sequence[int], inputs: LinearInputs) -> None:
        """Run one sample through one decoder layer."""
        given = self.given(hidden, number, row, ids)
        with inputs.hooked():
            hidden[row] = self.decoder.run(number, *given)

    def given(self, hidden: HiddenStates, number: int, row: int, ids: Sequence[int]) -> tuple[Tensor, Call]:
        """What one decoder layer is called with for one sample; finding it may run the model up to its layers."""
        return hidden[row].to(self.streamed.device), self.calls.call(number, ids)

    def finish(self, hidden: HiddenStates, row: int, ids: Sequence[int], inputs: LinearInputs) -> None:
        """Run one sample through the modules before and after the layers."""
        with inputs.hooked():
            self.decoder.around(self.network, ids, hidden[row].to(self.streamed.device))

    def observed(
        self, totals: Totals, inside: Names, present: Names, run: Run, progress: Progress | None
    ) -> ActivationStats:
        """The statistics of the modules that `inside` selects, from `run` with the weights that `present` selects."""
        watched = {name: module for name, module in self.layers.items() if inside(name)}
        outputs = {name: module for name, module in self.outputs.items() if inside(name)}
        caching = {name: module for name, module in self.caching.items() if inside(name)}
        visit, experts = guarded(totals.add, self.calls), totals.settings.expert_tokens
        inputs = LinearInputs(watched, visit, outputs, experts, caching)
        with self.streamed.present(present), called_as_quantized(self.decoder.model):
            for row, (sample_id, ids) in enumerate(totals.samples()):
                inputs.begin(sample_id, len(ids))
                run(row, ids, inputs)
                if progress is not None:
                    progress(len(ids))
        return totals.result(inputs.members(), watched)


def guarded(visit: Visit, calls: DecoderCalls) -> Visit:
    """`visit`, refusing a site that decoder layers share: `collect` would count it once, this module once per layer."""

    def guard(site: str, x: Tensor, positions: Tensor | None) -> None:
        if calls.hold(x):
            raise ValueError(
                f"layer {site!r} reads what its decoder layer is called with besides the hidden states, so decoder "
                "layers share a site; say `execution: {mode: whole}` in params.yaml"
            )
        visit(site, x, positions)

    return guard
