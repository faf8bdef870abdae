"""The inputs of a model's linear layers during a forward pass, each distinct input once: q, k and v share one.

Layers are Linear, transformers' Conv1D, Conv2d of one group (its input is the patches that it reads), the routers of
transformers' mixtures of experts, and each expert's weights, also where one tensor holds all experts (experts.py).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plumbline.base_model.cache import KEYS, VALUES, channels, exchanged
from plumbline.base_model.experts import are_fused_experts, projections, routed_inputs
from plumbline.base_model.patches import geometry, patches

UNKNOWN = 2**31 - 1
"""Position of a row that cannot be traced to a token: an expert that is a module of its own reads a selection of
tokens, and the rows of a convolution are patches."""
EXPERT = re.compile(r"\bexperts\.\d+\b")
"""Matches the name of a layer of an expert that is a module of its own."""
OUTPUT = ":output"
"""Suffix of the name of a site that is a layer's output."""

NO_INPUT = (OUTPUT, KEYS, VALUES)
"""Suffixes of the names of sites that no layer multiplies: they have no Hessian."""

Visit = Callable[[str, Tensor, Tensor | None], None]
"""(name of the site, its activations (..., width), their positions). The first layer that reads the activations names
the site. Positions, int64 (rows,), are the token of the sample that each row is, or UNKNOWN throughout; None: the rows
are the sample's tokens in order."""


def linear_layers(model: nn.Module, ignore: Sequence[str]) -> dict[str, nn.Module]:
    """Every Linear and Conv1D that is not ignored, by name.

    Args:
        ignore: a module's full name, its end after a dot, or a regular expression after "re:".

    Raises:
        ValueError: no layer is left.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not matches(name, ignore)
    }
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no Linear or Conv1D besides those that statistics.ignore in params.yaml "
            f"names ({', '.join(ignore)})"
        )
    return layers


def watched_layers(model: nn.Module, ignore: Sequence[str]) -> dict[str, nn.Module]:
    """Every layer whose input is observed and that is not ignored, by name; the module's docstring lists the kinds.

    The weights of fused experts appear one by one, as `<experts>.<number>.gate_up_proj`, each with the shared module.

    Args:
        ignore: as for `linear_layers`; the name of a module of experts stands for all of them.

    Raises:
        ValueError: no layer is left.
    """
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if matches(name, ignore):
            continue
        if are_fused_experts(module):
            layers |= {part: module for part in projections(name, module) if not matches(part, ignore)}
        elif _reads_rows(module) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            layers[name] = module
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no Linear or Conv1D besides those that statistics.ignore in params.yaml "
            f"names ({', '.join(ignore)}), and no Conv2d or experts"
        )
    return layers


def left_out(model: nn.Module, ignore: Sequence[str]) -> dict[str, str]:
    """Reason by name for each module that has weights, is not ignored and is still not observed."""
    watched = {id(module) for module in watched_layers(model, ignore).values()}
    reasons = {}
    for name, module in model.named_modules():
        shapes = [tuple(weight.shape) for weight in module.parameters(recurse=False) if weight.dim() > 1]
        if not shapes or id(module) in watched or isinstance(module, nn.Embedding) or matches(name, ignore):
            continue
        if are_fused_experts(module):  # every weight of it is ignored
            continue
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d):
            reasons[name] = f"{kind} of {module.groups} groups: only convolutions of one group are watched"
        elif are_unknown_experts(module):
            reasons[name] = (
                f"{kind}: experts in one tensor whose arithmetic is not known here; their inputs are not seen"
            )
        else:
            reasons[name] = f"{kind} with weights {', '.join(map(str, shapes))}: what it reads is not known here"
    return reasons


def are_unknown_experts(module: nn.Module) -> bool:
    """Whether a module holds experts in one tensor, by its name, whose arithmetic is not known here."""
    dimensions = {weight.dim() for weight in module.parameters(recurse=False)}
    return 3 in dimensions and "xpert" in type(module).__name__ and not are_fused_experts(module)


def output_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The modules whose output is observed (`statistics.outputs`), by name.

    Raises:
        ValueError: a name matches no module.
    """
    modules = dict(model.named_modules())
    for entry in names:
        if not any(matches(name, [entry]) for name in modules):
            raise ValueError(
                f"statistics.outputs in params.yaml: no module of {type(model).__name__} is {entry!r}; give a full "
                'name, its end after a dot, or a regular expression after "re:"'
            )
    return {name: module for name, module in modules.items() if matches(name, names)}


def _reads_rows(module: nn.Module) -> bool:
    """Whether a layer multiplies the last dimension of its one input: Linear, Conv1D, a router of transformers."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("Router") and isinstance(weight, Tensor) and weight.dim() == 2


def matches(name: str, entries: Sequence[str]) -> bool:
    """Whether an entry names this module: in full, by its end after a dot, or by a regular expression after "re:"."""
    return any(
        re.match(entry[3:], name) is not None
        if entry.startswith("re:")
        else name == entry or name.endswith("." + entry)
        for entry in entries
    )


def network_of(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> nn.Module:
    """The module to call so that all of `layers` run: the decoder, without vocabulary logits, where that suffices."""
    decoder = model.base_model
    inside = {id(module) for module in decoder.modules()}
    return decoder if all(id(layer) in inside for layer in layers.values()) else model


def require_readable(model: PreTrainedModel, sample_id: str, ids: Sequence[int]) -> None:
    """Refuse a sample that the model cannot read.

    Raises:
        ValueError: no tokens, more tokens than the model reads, or a token outside its vocabulary.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if not len(ids):
        raise ValueError(f"sample {sample_id} has no tokens; drop it from the set")
    if longest is not None and len(ids) > longest:
        raise ValueError(
            f"sample {sample_id} has {len(ids)} tokens, the model reads at most {longest}; lower "
            "tokenize.max_length in params.yaml"
        )
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ValueError(
            f"sample {sample_id} holds token {max(ids) if min(ids) >= 0 else min(ids)}, the model knows 0 to "
            f"{vocabulary - 1}; the set was tokenized for another model"
        )


def require_finite(site: str, sample_id: str, *extremes: Tensor) -> None:
    """Refuse activations that are not finite.

    Args:
        extremes: tensors (width,) of one value per channel, inf or NaN where an activation of the channel is.

    Raises:
        ValueError: an activation is inf or NaN; names site, channel, sample and remedy.
    """
    finite = torch.stack([torch.isfinite(values) for values in extremes]).all(dim=0)
    if not bool(finite.all()):
        raise ValueError(
            f"site {site!r}, channel {int((~finite).nonzero()[0])}: the base model computes inf or NaN for sample "
            f"{sample_id}; store it in bfloat16 or float32 (float16 overflows at 65504), or take the sample out"
        )


class LinearInputs:
    """Finds the layers that share an input, and passes each distinct input to `visit` once."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        visit: Visit,
        outputs: Mapping[str, nn.Module] | None = None,
        expert_tokens: int | None = 0,
        caching: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """
        Args:
            layers: from `linear_layers` or `watched_layers`.
            outputs: modules whose output is visited, too, as the site `<name>:output`.
            expert_tokens: tokens of a sample that every expert sees at least; 0: what the router sends it; None: all.
            caching: from `caching_modules`: their keys and values are visited, too, as `<name>:k` and `<name>:v`.

        Raises:
            ValueError: experts are modules of their own, which see only what the router sends them.
        """
        alone = [name for name, layer in layers.items() if EXPERT.search(name) and not are_fused_experts(layer)]
        if expert_tokens != 0 and alone:
            raise ValueError(
                f"statistics.experts in params.yaml: {alone[0]} belongs to an expert that is a module of its own and "
                "sees only what the router sends it; write experts: routed"
            )
        self.expert_tokens = expert_tokens
        self.layers, self.visit, self.outputs, self.caching = layers, visit, outputs or {}, caching or {}
        self.site_of: dict[str, str] = {}
        """Layer -> site, in the order in which the layers first ran."""
        self.sample_id = ""
        self.tokens: int | None = None
        self.seen: dict[tuple[Any, ...], tuple[weakref.ref[Tensor], int, str]] = {}

    def begin(self, sample_id: str, tokens: int | None = None) -> None:
        """Start a sample; call this before each forward pass.

        Args:
            tokens: number of tokens; an input with another number of rows is a selection of them.
        """
        self.sample_id, self.tokens = sample_id, tokens
        self.seen.clear()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Observe the layers within the context."""
        handles = []
        experts: dict[str, tuple[nn.Module, set[str]]] = {}
        for name, layer in self.layers.items():
            if are_fused_experts(layer):
                module, number, part = name.rsplit(".", 2)
                experts.setdefault(module, (layer, set()))[1].add(f"{number}.{part}")
            else:
                handles.append(layer.register_forward_pre_hook(self._hook(name), with_kwargs=True))
        for name, (layer, watched) in experts.items():
            handles.append(layer.register_forward_pre_hook(self._experts_hook(name, watched), with_kwargs=True))
        for name, layer in self.outputs.items():
            handles.append(layer.register_forward_hook(self._output_hook(name + OUTPUT)))
        try:
            with exchanged(self.caching, self._show_cache):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def members(self) -> dict[str, tuple[str, ...]]:
        """Site -> the layers that read it, both in the order of the forward pass."""
        members: dict[str, list[str]] = {}
        for layer, site in self.site_of.items():
            members.setdefault(site, []).append(layer)
        return {site: tuple(layers) for site, layers in members.items()}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        chosen = EXPERT.search(name) is not None

        def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            if x.numel() == 0:  # an expert without a token
                return
            site = self._site(name, x, geometry(module) if isinstance(module, nn.Conv2d) else ())
            if self.site_of.setdefault(name, site) != site:
                raise ValueError(
                    f"layer {name!r} reads the input of {site!r} for sample {self.sample_id}, before it read that of "
                    f"{self.site_of[name]!r}; statistics are kept per input, so the layers that share one must not "
                    "change: add it to statistics.ignore in params.yaml"
                )
            if site == name:
                if isinstance(module, nn.Conv2d):
                    self._show(site, patches(module, x), True)
                else:
                    self._show(site, x, chosen)

        return observe

    def _experts_hook(
        self, name: str, watched: set[str]
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # transformers calls all its experts with (hidden states, chosen experts, their weights)
            hidden_states, chosen = [*args, *kwargs.values()][:2]
            for part, x, positions in routed_inputs(module, hidden_states, chosen, watched, self.expert_tokens):
                site = f"{name}.{part}"
                self.site_of.setdefault(site, site)
                self.visit(site, x, positions)

        return observe

    def _output_hook(self, site: str) -> Callable[[nn.Module, Any, Any], None]:
        chosen = EXPERT.search(site) is not None

        def observe(module: nn.Module, args: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple | list) else output
            if not isinstance(x, Tensor):
                raise ValueError(
                    f"{site}: {type(module).__name__} gives {type(x).__name__}, expected a tensor; take it out of "
                    "statistics.outputs in params.yaml"
                )
            if x.numel() == 0:
                return
            self.site_of.setdefault(site, site)
            if isinstance(module, nn.Conv2d):  # its channels come first
                self._show(site, x.movedim(-3, -1), True)
            else:
                self._show(site, x, chosen)

        return observe

    def _show_cache(self, name: str, keys: Tensor, values: Tensor) -> None:
        for suffix, states in ((KEYS, keys), (VALUES, values)):
            self.site_of.setdefault(name + suffix, name + suffix)
            self._show(name + suffix, channels(states), False)

    def _show(self, site: str, x: Tensor, chosen: bool) -> None:
        """Pass activations to `visit`; `chosen`: their rows are not the sample's tokens in order."""
        rows = x.numel() // x.shape[-1]
        if chosen or (self.tokens is not None and rows != self.tokens):
            self.visit(site, x, torch.full((rows,), UNKNOWN, dtype=torch.int64, device=x.device))
        else:
            self.visit(site, x, None)

    def _site(self, name: str, x: Tensor, view: tuple[object, ...]) -> str:
        """The first layer of this forward pass that read this same tensor in the same view."""
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype, view)
        if key in self.seen:
            earlier, version, site = self.seen[key]
            # Dead reference: another tensor has the memory now. Other version: the tensor was written to in between.
            if earlier() is not None and version == x._version:
                return site
        self.seen[key] = (weakref.ref(x), x._version, name)
        return name
