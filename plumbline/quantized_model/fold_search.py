"""Find the module that produces the input of a Linear, by experiment instead of a table of model types.

Each decoder layer runs alone in float64 (float32 if its code does not support that), with its real weights, over some
random hidden states. This needs no text, no statistics, and no more memory than the layer. Candidates of a site are the
norm whose output tensor its Linears read, and the Linears that ran before. A candidate is correct if, after folding a
random scale s into it,

- the Linears read x / s: everything between is homogeneous, as act(gate) * up is in up, attention in v, or ReLU, unlike
  GELU or a norm; and
- the output of the decoder layer and the inputs of its other Linears are unchanged: nothing else (a router, experts, a
  residual) reads the norm.

The same check covers norms with (1 + w), biases, several Linears on one norm and heads of v that queries share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from plumbline.base_model.decoder import Call, Decoder, Start
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.own_modules import with_own_modules
from plumbline.quantized_model.folding import Fold, folded

TOKENS = 16
"""Tokens of the check; a channel behind a ReLU must be positive for at least one of them to be checked."""
SEED = 2211
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Relative to a channel's largest value. It allows for norms that compute in float32 whatever their input, and for a
layer whose output is small beside the residual. A wrong fold is off by up to a factor of 2."""

Key = tuple[int, int]
"""Address of a tensor's data and number of elements; equal for reshaped views."""


@dataclass(frozen=True, eq=False)
class _Event:
    """One call of a module of the decoder layer."""

    name: str
    reads: Key
    gives: Key
    x: Tensor | None
    """(tokens, width), a copy of a Linear's input; None for other modules."""


@dataclass(frozen=True, eq=False)
class _Pass:
    out: Tensor
    events: tuple[_Event, ...]
    """In the order in which the modules finished."""
    tensors: tuple[Tensor, ...]
    """All inputs and outputs; holding them keeps their memory in use, so that a `Key` stays unique."""

    def reading(self, name: str) -> _Event | None:
        return next((event for event in self.events if event.name == name and event.x is not None), None)


class _Block:
    """One decoder layer in float64 or float32."""

    def __init__(
        self, layer: nn.Module, name: str, hidden: Tensor, call: Call, heads: int | None, dtype: torch.dtype
    ) -> None:
        self.layer, self.name, self.heads, self.dtype = layer, name, heads, dtype
        generator = torch.Generator().manual_seed(SEED)
        self.hidden = torch.randn(hidden.shape, generator=generator, dtype=torch.float64).to(hidden.device, dtype)
        self.positional, self.keywords = _cast(call.positional, dtype), _cast(call.keywords, dtype)
        self.state: dict[str, Tensor] = {
            key: _cast(value.detach(), dtype) for key, value in (*layer.named_parameters(), *layer.named_buffers())
        }
        self.modules = dict(layer.named_modules())

    def parameter(self, name: str) -> Tensor | None:
        """A parameter by its name in the model."""
        return self.state.get(name.removeprefix(f"{self.name}."))

    @torch.no_grad()
    def run(self, changed: Mapping[str, Tensor] | None = None) -> _Pass:
        """Run the layer with some parameters (by name in the model) replaced."""
        events: list[_Event] = []
        tensors: list[Tensor] = []

        def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x, y = _first_tensor((*args, *kwargs.values())), _first_tensor((output,))
            if x is None or y is None:
                return
            tensors.extend((x, y))
            is_linear = isinstance(module, nn.Linear) and x.numel() > 0
            linear_input = x.reshape(-1, x.shape[-1]).clone() if is_linear else None
            events.append(_Event(f"{self.name}.{names[id(module)]}", _key(x), _key(y), linear_input))

        names = {id(module): name for name, module in self.modules.items() if name}
        leaves = [m for m in self.modules.values() if any(True for _ in m.parameters(recurse=False)) and id(m) in names]
        handles = [module.register_forward_hook(watch, with_kwargs=True) for module in leaves]
        state = self.state | {key.removeprefix(f"{self.name}."): value for key, value in (changed or {}).items()}
        try:
            out = functional_call(self.layer, state, (self.hidden, *self.positional), self.keywords)
        finally:
            for handle in handles:
                handle.remove()
        return _Pass(out[0] if isinstance(out, tuple) else out, tuple(events), tuple(tensors))


@dataclass(frozen=True, eq=False)
class FoldCheck:
    """What the check of a fold reads outside its decoder layer.

    Attributes:
        start: the inputs of the decoder layers for a few tokens.
        tied: parameters that other modules share, by name.
    """

    start: Start
    tied: frozenset[str]

    @classmethod
    def of(
        cls, model: PreTrainedModel, present: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> FoldCheck:
        """Args:
            present: context in which the weights outside the decoder layers are in memory.

        Raises:
            ValueError: the model cannot be run layer by layer.
        """
        parameters = list(model.named_parameters(remove_duplicate=False))
        uses = Counter(id(p) for _, p in parameters)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        with present():
            decoder = Decoder(with_own_modules(model))  # other threads may quantize the same model
            start = decoder.start([i % vocabulary for i in range(TOKENS)])
        return cls(start, frozenset(name for name, p in parameters if uses[id(p)] > 1))


def find_folds(
    model: PreTrainedModel, sites: Mapping[str, Sequence[str]], check: FoldCheck | None = None
) -> tuple[dict[str, Fold], dict[str, str]]:
    """The fold of each site: where its scale goes.

    Args:
        model: weights of decoder layers without `sites` may be on the meta device if `check` is given.
        sites: site name -> the Linears to quantize that read it.

    Returns:
        Site name -> fold, in the order of the forward pass; site name -> reason why it has none.
    """
    try:
        check = check or FoldCheck.of(model)
    except ValueError as error:
        reason = str(error).split(". Say")[0]  # the rest is advice for collecting statistics
        return {}, dict.fromkeys(sites, f"no fold can be checked: {reason}")
    decoder, start, tied = Decoder(with_own_modules(model)), check.start, check.tied
    heads = getattr(model.config.get_text_config(), "num_attention_heads", None)
    folds: dict[str, Fold] = {}
    unfolded = dict.fromkeys(sites, "it is read outside the decoder layers, where nothing is folded")
    with one_thread():
        for layer, name, call in zip(decoder.layers, decoder.names, start.calls, strict=True):
            inside = {site: members for site, members in sites.items() if members[0].startswith(f"{name}.")}
            if not inside:
                continue
            layer_folds, reasons = _folds_within(partial(_Block, layer, name, start.hidden, call, heads), inside, tied)
            folds |= layer_folds
            unfolded = {site: reason for site, reason in unfolded.items() if site not in layer_folds} | reasons
    return folds, unfolded


def _folds_within(
    make: Callable[[torch.dtype], _Block], sites: Mapping[str, Sequence[str]], tied: frozenset[str]
) -> tuple[dict[str, Fold], dict[str, str]]:
    """`find_folds` of one decoder layer."""
    try:
        block = make(torch.float64)
        base = block.run()
    except RuntimeError:  # no kernel for float64, as for grouped matrix products of experts
        try:
            block = make(torch.float32)
            base = block.run()
        except RuntimeError as error:
            return {}, dict.fromkeys(sites, f"no fold can be checked: {str(error).splitlines()[0]}")
    site_of = {member: site for site, members in sites.items() for member in members}
    order = {event.name: index for index, event in reversed(list(enumerate(base.events)))}
    folds: dict[str, Fold] = {}
    unfolded: dict[str, str] = {}
    for site in sorted(sites, key=lambda site: order.get(sites[site][0], len(order))):
        fold = _fold_of(block, base, site, sites[site], site_of, tied)
        if isinstance(fold, Fold):
            folds[site] = fold
        else:
            unfolded[site] = fold
    if folds and not _all_together(block, base, folds):
        reason = "its fold is right alone, but not together with the others of its decoder layer"
        unfolded |= dict.fromkeys(folds, reason)
        folds = {}
    return folds, unfolded


def _fold_of(
    block: _Block, base: _Pass, site: str, members: Sequence[str], site_of: Mapping[str, str], tied: frozenset[str]
) -> Fold | str:
    """The fold that passes the check, or the reason why none does."""
    if members[0].removeprefix(f"{block.name}.") not in block.modules:
        return "nothing is folded into experts that one tensor holds"
    event = base.reading(members[0])
    if event is None or event.x is None:
        return "no token of the check reached it"
    readers = tuple(other.name for other in base.events if other.x is not None and other.reads == event.reads)
    if missing := [name for name in members if name not in readers]:
        return f"{missing[0]} reads another tensor than {members[0]} in the check"
    if foreign := [name for name in readers if site_of.get(name, site) != site]:
        return f"{foreign[0]} reads the same tensor, but has statistics of its own"
    if shared := [name for name in readers if f"{name}.weight" in tied]:
        return f"{shared[0]} shares its weight with another module"
    tried, reason = [], None
    for fold in _candidates(block, base, event, readers):
        if any(f"{fold.producer}.{part}" in tied for part in ("weight", "bias")):
            reason = f"{fold.producer} shares its weight with another module"
            continue
        is_scaled, is_same = _check(block, base, fold, event)
        if is_scaled and is_same:
            return fold
        if is_scaled:
            reason = f"something besides {', '.join(readers)} depends on what {fold.producer} gives"
        tried.append(fold.producer)
    if reason is not None:
        return reason
    if not any(other.gives == event.reads for other in base.events) and event.reads == _key(block.hidden):
        return "it is the residual stream itself, which every later layer reads"
    names = ", ".join(dict.fromkeys(tried))
    return f"its channels are not multiples of those of a norm or Linear before it (tried {names or 'none'})"


def _candidates(block: _Block, base: _Pass, event: _Event, readers: tuple[str, ...]) -> Iterator[Fold]:
    assert event.x is not None
    width = event.x.shape[1]
    device = event.x.device
    runs = Counter(other.name for other in base.events)
    before = base.events[: base.events.index(event)]
    for other in reversed(before):
        if runs[other.name] > 1:
            continue
        weight = block.parameter(f"{other.name}.weight")
        if other.x is None and other.gives == event.reads and weight is not None and weight.shape == (width,):
            for offset in (0.0, 1.0):
                yield Fold(other.name, offset, torch.arange(width, device=device), readers)
    for other in reversed(before):
        if other.x is not None and runs[other.name] == 1:
            for rows in _row_maps(block.modules[other.name.removeprefix(f"{block.name}.")], width, block.heads):
                yield Fold(other.name, 0.0, rows.to(device), readers)


def _row_maps(module: nn.Module, width: int, heads: int | None) -> Iterator[Tensor]:
    """The possible maps from the channels of a site to output channels of a Linear, (width,) int64 each.

    All channels in order; repeated heads, as by transformers' repeat_kv; the second half (up after gate) or the first;
    v in a fused q, k and v, stored one after the other or head by head.
    """
    assert isinstance(module, nn.Linear)
    rows = module.out_features
    if rows == width:
        yield torch.arange(width)
    if rows == 2 * width:
        yield torch.arange(width, 2 * width)
        yield torch.arange(width)
    if heads is None or width % heads:
        return
    size = width // heads
    v = (rows - width) // 2 if rows > width else rows
    if rows != width and rows - v in (0, width + v) and v % size == 0 and v and heads % (v // size) == 0:
        head_rows = torch.arange(rows - v, rows).view(-1, size)
        yield head_rows.repeat_interleave(heads // len(head_rows), 0).flatten()
    if rows == 3 * width:
        yield torch.arange(rows).view(heads, 3, size)[:, 2].flatten()


def _scale(fold: Fold, seed: int) -> Tensor:
    """(width,) float32 in [1/2, 2], equal where the rows are."""
    rows = fold.rows
    exponent = 2 * torch.rand(int(rows.max()) + 1, generator=torch.Generator().manual_seed(seed)) - 1
    return torch.exp2(exponent).to(rows.device)[rows]


def _check(block: _Block, base: _Pass, fold: Fold, event: _Event) -> tuple[bool, bool]:
    """Whether the readers read x / s, and whether the decoder layer is otherwise unchanged."""
    s = _scale(fold, SEED)
    scaled_pass = block.run(folded(block.parameter, fold, s))
    scaled_event = scaled_pass.reading(event.name)
    if event.x is None or scaled_event is None or scaled_event.x is None or scaled_event.x.shape != event.x.shape:
        return False, False
    return _close(scaled_event.x * s, event.x), _is_same(block, base, scaled_pass, event.reads)


def _all_together(block: _Block, base: _Pass, folds: Mapping[str, Fold]) -> bool:
    changed: dict[str, Tensor] = {}

    def parameter(name: str) -> Tensor | None:
        return changed[name] if name in changed else block.parameter(name)

    for number, fold in enumerate(folds.values()):
        changed |= folded(parameter, fold, _scale(fold, SEED + number))
    return _is_same(block, base, block.run(changed))


def _is_same(block: _Block, base: _Pass, then: _Pass, scaled: Key | None = None) -> bool:
    """Whether two passes have the same output and, with `scaled`, all Linears but the readers of it the same input."""
    # Without the residual, beside which the layer's own output may be small.
    added, added_after = (x.out - block.hidden if x.out.shape == block.hidden.shape else x.out for x in (base, then))
    if not _close(added_after, added):
        return False
    if scaled is None:
        return True
    if [event.name for event in base.events] != [event.name for event in then.events]:
        return False
    return all(
        before.x is None or after.x is None or before.reads == scaled or _close(after.x, before.x)
        for before, after in zip(base.events, then.events, strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to float32's rounding, channel by channel (the last dimension)."""
    if a.shape != b.shape:
        return False
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    largest, tolerance = b.abs().amax(0), TOLERANCE[b.dtype]
    return bool(((a - b).abs() <= tolerance * (largest + tolerance * largest.amax())).all())


def _key(x: Tensor) -> Key:
    return x.data_ptr(), x.numel()


def _first_tensor(values: Sequence[Any]) -> Tensor | None:
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
        if isinstance(value, tuple | list) and (tensor := _first_tensor(value)) is not None:
            return tensor
    return None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A nested structure with all its floating-point tensors in another dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_cast(part, dtype) for part in value)
    if isinstance(value, dict):
        return {key: _cast(part, dtype) for key, part in value.items()}
    return value
