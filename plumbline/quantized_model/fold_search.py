"""Which module produces the input of a Linear, found by trying: no table of model types.

One decoder layer at a time, in float64 (float32 where its code cannot), with its real weights, over a few random hidden
states: no text, no statistics, and no more memory than that layer. Candidates for a site are the norm whose output is
the very tensor that its Linears read, and the Linears that ran before. A candidate is right when, after folding a
random scale into it,

- what the Linears read is x / s, so everything between is homogeneous: act(gate) * up in up, attention in v, ReLU, but
  not GELU or a norm; and
- the decoder layer as a whole computes what it did, and its other Linears read what they did: nobody else reads the
  norm (a router, experts, a residual).

A norm's (1 + w), biases, several Linears on one norm and heads of v that several queries share come out the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from plumbline.base_model.decoder import Call, Decoder
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.own_modules import with_own_modules
from plumbline.quantized_model.folding import Fold, folded

TOKENS = 16
"""Of the check: a channel behind a ReLU is on for at least one of them, or nothing is known about it."""
SEED = 2211
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Relative to a channel's largest value. Norms compute in float32 whatever they are given, and what a layer adds may be
small beside what it adds it to; a wrong fold is wrong by up to a factor of 2."""

Key = tuple[int, int]
"""Where a tensor lies and how many elements it has: a reshaped view is the same."""


@dataclass(frozen=True, eq=False)
class _Event:
    """A module of the decoder layer ran."""

    name: str
    reads: Key
    gives: Key
    x: Tensor | None
    """(tokens, width) what a Linear read, a copy."""


@dataclass(frozen=True, eq=False)
class _Pass:
    out: Tensor
    events: tuple[_Event, ...]
    """In the order in which the modules finished."""
    kept: tuple[Tensor, ...]
    """Keeps the memory of every tensor taken, so that a `Key` stands for one of them."""

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
        """By its name in the model."""
        return self.state.get(name.removeprefix(f"{self.name}."))

    @torch.no_grad()
    def run(self, changed: Mapping[str, Tensor] | None = None) -> _Pass:
        """One pass with some parameters (by name in the model) replaced."""
        events: list[_Event] = []
        kept: list[Tensor] = []

        def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x, y = _first_tensor((*args, *kwargs.values())), _first_tensor((output,))
            if x is None or y is None:
                return
            kept.extend((x, y))
            is_linear = isinstance(module, nn.Linear) and x.numel() > 0
            seen = x.reshape(-1, x.shape[-1]).clone() if is_linear else None
            events.append(_Event(f"{self.name}.{names[id(module)]}", _key(x), _key(y), seen))

        names = {id(module): name for name, module in self.modules.items() if name}
        leaves = [m for m in self.modules.values() if any(True for _ in m.parameters(recurse=False)) and id(m) in names]
        handles = [module.register_forward_hook(watch, with_kwargs=True) for module in leaves]
        state = self.state | {key.removeprefix(f"{self.name}."): value for key, value in (changed or {}).items()}
        try:
            out = functional_call(self.layer, state, (self.hidden, *self.positional), self.keywords)
        finally:
            for handle in handles:
                handle.remove()
        return _Pass(out[0] if isinstance(out, tuple) else out, tuple(events), tuple(kept))


def find_folds(model: PreTrainedModel, sites: Mapping[str, Sequence[str]]) -> tuple[dict[str, Fold], dict[str, str]]:
    """Where the scale of each site can be folded to.

    Args:
        sites: site name -> the Linears that read it and are to be quantized.

    Returns:
        Site -> its fold, in the order in which the sites are read in the forward pass; site -> why there is none.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    try:
        decoder = Decoder(with_own_modules(model))  # other threads may quantize the same model
        start = decoder.start([i % vocabulary for i in range(TOKENS)])
    except ValueError as error:
        reason = str(error).split(". Say")[0]  # what to change in params.yaml is about collecting statistics
        return {}, dict.fromkeys(sites, f"no fold can be checked: {reason}")
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    tied = {name for name, p in model.named_parameters(remove_duplicate=False) if uses[id(p)] > 1}
    heads = getattr(model.config.get_text_config(), "num_attention_heads", None)
    folds: dict[str, Fold] = {}
    why = dict.fromkeys(sites, "it is read outside the decoder layers, where nothing is folded")
    with one_thread():
        for layer, name, call in zip(decoder.layers, decoder.names, start.calls, strict=True):
            inside = {site: members for site, members in sites.items() if members[0].startswith(f"{name}.")}
            if not inside:
                continue
            found, reasons = _folds_within(partial(_Block, layer, name, start.hidden, call, heads), inside, tied)
            folds |= found
            why = {site: reason for site, reason in why.items() if site not in found} | reasons
    return folds, why


def _folds_within(
    make: Callable[[torch.dtype], _Block], sites: Mapping[str, Sequence[str]], tied: set[str]
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
    why: dict[str, str] = {}
    for site in sorted(sites, key=lambda site: order.get(sites[site][0], len(order))):
        found = _fold_of(block, base, site, sites[site], site_of, tied)
        if isinstance(found, Fold):
            folds[site] = found
        else:
            why[site] = found
    if folds and not _all_together(block, base, folds):
        why |= dict.fromkeys(folds, "its fold is right alone, but not together with the others of its decoder layer")
        folds = {}
    return folds, why


def _fold_of(
    block: _Block, base: _Pass, site: str, members: Sequence[str], site_of: Mapping[str, str], tied: set[str]
) -> Fold | str:
    """The fold that passes the check, or why none does."""
    event = base.reading(members[0])
    if event is None or event.x is None:
        return "no token of the check reached it"
    readers = tuple(other.name for other in base.events if other.x is not None and other.reads == event.reads)
    if missing := [name for name in members if name not in readers]:
        return f"{missing[0]} reads another tensor than {members[0]} in the check"
    if strange := [name for name in readers if site_of.get(name, site) != site]:
        return f"{strange[0]} reads the same tensor, but has statistics of its own"
    if both := [name for name in readers if f"{name}.weight" in tied]:
        return f"{both[0]} shares its weight with another module"
    tried, elsewhere = [], None
    for fold in _candidates(block, base, event, readers):
        if any(f"{fold.producer}.{part}" in tied for part in ("weight", "bias")):
            elsewhere = f"{fold.producer} shares its weight with another module"
            continue
        is_scaled, is_same = _check(block, base, fold, event)
        if is_scaled and is_same:
            return fold
        if is_scaled:
            elsewhere = f"something besides {', '.join(readers)} depends on what {fold.producer} gives"
        tried.append(fold.producer)
    if elsewhere is not None:
        return elsewhere
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
    """(width,) int64 each: which output channels of a Linear may stand behind the channels of a site.

    All of them in order; heads that are repeated, as transformers' repeat_kv does; the last half (up behind gate) or
    the first; the last part of q, k and v in one, whether they lie one after the other or head by head.
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
        each = torch.arange(rows - v, rows).view(-1, size)
        yield each.repeat_interleave(heads // len(each), 0).flatten()
    if rows == 3 * width:
        yield torch.arange(rows).view(heads, 3, size)[:, 2].flatten()


def _scale(fold: Fold, seed: int) -> Tensor:
    """(width,) float32 in [1/2, 2], equal where the rows are."""
    rows = fold.rows
    exponent = 2 * torch.rand(int(rows.max()) + 1, generator=torch.Generator().manual_seed(seed)) - 1
    return torch.exp2(exponent).to(rows.device)[rows]


def _check(block: _Block, base: _Pass, fold: Fold, event: _Event) -> tuple[bool, bool]:
    """Whether the readers read x / s, and whether the decoder layer computes what it did."""
    s = _scale(fold, SEED)
    then = block.run(folded(block.parameter, fold, s))
    seen = then.reading(event.name)
    if event.x is None or seen is None or seen.x is None or seen.x.shape != event.x.shape:
        return False, False
    return _close(seen.x * s, event.x), _is_same(block, base, then, event.reads)


def _all_together(block: _Block, base: _Pass, folds: Mapping[str, Fold]) -> bool:
    changed: dict[str, Tensor] = {}

    def parameter(name: str) -> Tensor | None:
        return changed[name] if name in changed else block.parameter(name)

    for number, fold in enumerate(folds.values()):
        changed |= folded(parameter, fold, _scale(fold, SEED + number))
    return _is_same(block, base, block.run(changed))


def _is_same(block: _Block, base: _Pass, then: _Pass, scaled: Key | None = None) -> bool:
    """Whether two passes have one result and, given the tensor that is scaled, all Linears read the same but there."""
    # What the layer adds may be small beside what it is added to.
    added, now = (x.out - block.hidden if x.out.shape == block.hidden.shape else x.out for x in (base, then))
    if not _close(now, added):
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
        if isinstance(value, tuple | list) and (found := _first_tensor(value)) is not None:
            return found
    return None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """All floating-point tensors in something in another dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_cast(part, dtype) for part in value)
    if isinstance(value, dict):
        return {key: _cast(part, dtype) for key, part in value.items()}
    return value
