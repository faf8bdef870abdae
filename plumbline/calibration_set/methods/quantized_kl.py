"""The effect of a calibration set on the model: KL of the base model and of a model quantized from the set.

Quantizing from many sets costs one forward pass per candidate sample. A Hessian S = sum of x x^T is a sum over samples,
so each candidate's Hessian is stored and that of a set is their sum.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline.base_model.inputs import LinearInputs, require_finite, require_readable
from plumbline.base_model.one_thread import one_thread
from plumbline.calibration_set.strategies.base import Samples
from plumbline.divergence import BasePrediction, predict, token_divergence
from plumbline.progress import Bar
from plumbline.quantized_model.gptq import gptq
from plumbline.quantized_model.grid import Grid, dequantize
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.ranges import ranges_of
from plumbline.quantized_model.scheme import group_size_for, quantizable_linears

GIGABYTE = 2**30


@dataclass(frozen=True, eq=False)
class SiteHessians:
    """Hessians of the input of some Linears, per candidate."""

    members: tuple[str, ...]
    """The Linears that read it."""
    hessians: Tensor
    """(candidates, width, width) float32: S of each candidate, zero if none of its tokens reached the site."""
    tokens: NDArray[np.int64]
    """(candidates,): tokens in each."""

    def of(self, items: Sequence[int]) -> tuple[Tensor, int]:
        """S of a set, (width, width) float64, summed in ascending order of the items, and its tokens."""
        S = torch.zeros_like(self.hessians[0], dtype=torch.float64)
        for item in sorted(items):
            S += self.hessians[item]
        return S, int(self.tokens[list(items)].sum())


def probe_linears(model: nn.Module, blocks: int | None) -> dict[str, nn.Linear]:
    """The quantizable Linears by name, of `blocks` decoder layers spread evenly over the depth, or of all (None).

    The decoder layers are the longest list of modules in the model.

    Raises:
        ValueError: nothing to quantize, or the model has no list of layers.
    """
    linears = quantizable_linears(model, ("lm_head",))
    if blocks is None:
        return linears
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ValueError(f"blocks = {blocks}, but {type(model).__name__} has no list of layers; set blocks: null")
    stack = max(lists, key=lambda name: len(lists[name]))
    depth = len(lists[stack])
    # the middles of `blocks` equal parts of the depth
    chosen = sorted({(2 * part + 1) * depth // (2 * blocks) for part in range(blocks)})
    starts = tuple(f"{stack}.{number}." for number in chosen)
    taken = {name: linear for name, linear in linears.items() if name.startswith(starts)}
    if not taken:
        raise ValueError(f"{stack} of {type(model).__name__} holds no Linear to quantize; set blocks: null")
    return taken


@torch.no_grad()
def sample_hessians(
    model: PreTrainedModel,
    linears: dict[str, nn.Linear],
    samples: Sequence[tuple[str, NDArray[np.int32]]],
    memory_gb: float,
) -> list[SiteHessians]:
    """The Hessian of each sample at every distinct input of the Linears, by one forward pass per sample.

    Args:
        model: in evaluation mode; left as it was.
        samples: (sample id, token ids).
        memory_gb: limit for all Hessians together, in units of 2^30 bytes.

    Raises:
        ValueError: they would need more (known after the first sample), or the model cannot read a sample.
    """
    hessians: dict[str, Tensor] = {}
    tokens: dict[str, NDArray[np.int64]] = {}
    row = 0

    def add(site: str, x: Tensor, positions: Tensor | None) -> None:
        x = x.reshape(-1, x.shape[-1]).float()
        require_finite(site, samples[row][0], x.amax(0), x.amin(0))
        if site not in hessians:
            tokens[site] = np.zeros(len(samples), dtype=np.int64)
            hessians[site] = torch.zeros(len(samples) if row else 1, x.shape[1], x.shape[1])
            if row:  # an expert that the first sample was not routed to
                _require_room(hessians, len(samples), memory_gb)
        hessians[site][row] = (x.T @ x).cpu()
        tokens[site][row] = len(x)

    inputs = LinearInputs(linears, add)
    device = next(model.parameters()).device
    with inputs.hooked():
        for row, (name, ids) in enumerate(Bar(samples, desc="Hessians", unit="sample")):
            if row == 1:
                _require_room(hessians, len(samples), memory_gb)
                for site, first in hessians.items():
                    hessians[site] = torch.cat([first, torch.zeros(len(samples) - 1, *first.shape[1:])])
            require_readable(model, name, ids.tolist())
            inputs.begin(name)
            model.base_model(input_ids=torch.as_tensor(ids.astype(np.int64), device=device)[None], use_cache=False)
    return [SiteHessians(members, hessians[site], tokens[site]) for site, members in inputs.members().items()]


def _require_room(hessians: dict[str, Tensor], candidates: int, memory_gb: float) -> None:
    needed = candidates * sum(S[0].numel() * S.element_size() for S in hessians.values()) / GIGABYTE
    if needed > memory_gb:
        raise ValueError(
            f"strategy reinforce: the Hessians of {candidates} candidates at {len(hessians)} sites take {needed:.3g} "
            f"GiB, memory_gb is {memory_gb:g}; in params.yaml, lower the choice's candidates or blocks, or raise "
            "memory_gb"
        )


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts and the base model's predictions on them."""

    input_ids: list[NDArray[np.int32]]
    base: list[BasePrediction]

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return sum(len(base.targets) for base in self.base)


class QuantizedKL:
    """KL per token of the base model and of a copy whose probe layers are quantized from a set of candidates.

    On a CPU everything runs on one thread, so that matrix products are summed in the same order with any number of
    cores, and a search takes the same path on all machines of one kind. Another kind of CPU, or a GPU, may differ in
    the last bits and choose another set.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        candidates: Sequence[tuple[str, NDArray[np.int32]]],
        *,
        blocks: int | None,
        bits: int,
        group_size: int | None,
        memory_gb: float,
    ) -> None:
        """Collect the candidates' Hessians and copy the model, which itself is only read.

        Args:
            candidates: (sample id, token ids); a set names them by position.
            blocks: see `probe_linears`. bits, group_size: of the grid; see `group_size_for`.

        Raises:
            ValueError: see `probe_linears`, `sample_hessians` and `group_size_for`.
        """
        linears = probe_linears(model, blocks)
        self.model, self.bits = model, bits
        self.scheme = SchemeParams.model_validate({"method": "gptq", "weight_bits": bits})
        self.group_size = {name: group_size_for(one.in_features, group_size, bits) for name, one in linears.items()}
        with one_thread():
            self.sites = sample_hessians(model, linears, candidates, memory_gb)
        self._copy = copy.deepcopy(model)
        self._quantized_from: tuple[int, ...] | None = None

    def texts(self, input_ids: list[NDArray[np.int32]]) -> Texts:
        """The texts with the base model's predictions, computed once."""
        with one_thread():
            return Texts(input_ids, [self._predict(self.model, ids) for ids in input_ids])

    def __call__(self, items: Sequence[int], texts: Texts) -> float:
        """Mean over the tokens of `texts` of KL(base || quantized from the set `items`), nats."""
        self.quantize(items)
        total = 0.0
        with one_thread():
            for ids, base in zip(texts.input_ids, texts.base, strict=True):
                total += float(token_divergence(base, self._logits(self._copy, ids)).kl.sum())
        return total / texts.tokens

    @torch.no_grad()
    def quantize(self, items: Sequence[int]) -> PreTrainedModel:
        """The copy with its probe layers quantized by `method: gptq` with the Hessian of the set."""
        wanted = tuple(sorted(items))
        if wanted != self._quantized_from:
            with one_thread():
                for site in self.sites:
                    S, tokens = site.of(wanted)
                    weights = [self._linear(self.model, name).weight for name in site.members]
                    W = torch.cat(weights)
                    grid = Grid(self.bits, self.group_size[site.members[0]])
                    ranges = ranges_of(grid, self.scheme, W.dtype)
                    solved = gptq(
                        W, S, tokens, grid, self.scheme.damping, act_order=self.scheme.act_order, ranges=ranges
                    )
                    parts = torch.split(dequantize(solved.weight), [len(weight) for weight in weights])
                    for name, part in zip(site.members, parts, strict=True):
                        self._linear(self._copy, name).weight.copy_(part)
            self._quantized_from = wanted
        return self._copy

    def _linear(self, model: PreTrainedModel, name: str) -> nn.Linear:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)  # `probe_linears` takes no other
        return linear

    def _predict(self, model: PreTrainedModel, ids: NDArray[np.int32]) -> BasePrediction:
        targets = torch.as_tensor(ids[1:].astype(np.int64), device=model.device)
        return predict(self._logits(model, ids), targets)

    @torch.no_grad()
    def _logits(self, model: PreTrainedModel, ids: NDArray[np.int32]) -> Tensor:
        """Logits (T - 1, vocabulary) at the positions that have a next token."""
        tokens = torch.as_tensor(ids.astype(np.int64), device=model.device)[None]
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        return logits


def two_halves(
    samples: Samples, tokens: int, rng: np.random.Generator
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
    """Two sub-samples of at most `tokens` tokens each that share no document.

    Documents in random order go to the two in turn. One random sample of each document is taken, then a second one of
    each, and so on, so that many documents are represented. The last sample is cut at the limit.

    Raises:
        ValueError: fewer than two documents have a sample of two tokens or more.
    """
    documents: dict[str, list[int]] = {}
    for row, (document, length) in enumerate(zip(samples.doc_ids, samples.lengths, strict=True)):
        if length > 1:
            documents.setdefault(document, []).append(row)
    if len(documents) < 2:
        raise ValueError(
            f"strategy reinforce: the tuning split has {len(documents)} document(s), expected two or more, so "
            "that the texts that reward a set and those that check it share none; raise tokenize.splits.tuning in "
            "params.yaml"
        )
    names = sorted(documents)
    shuffled = [rng.permutation(documents[names[number]]) for number in rng.permutation(len(names))]
    return _first(samples, shuffled[::2], tokens), _first(samples, shuffled[1::2], tokens)


def _first(samples: Samples, documents: list[NDArray[np.int64]], tokens: int) -> list[NDArray[np.int32]]:
    rounds = range(max(len(rows) for rows in documents))
    order = [int(rows[turn]) for turn in rounds for rows in documents if turn < len(rows)]
    lengths = samples.lengths[order]
    before = np.cumsum(lengths) - lengths
    taken = [row for row, start in zip(order, before, strict=True) if start < tokens]
    cut = [ids[: tokens - start] for ids, start in zip(samples.input_ids(taken), before, strict=False)]
    return [ids for ids in cut if len(ids) > 1]
