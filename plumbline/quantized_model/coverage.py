"""Which share of a model's weights a scheme quantizes, by kind, and what it leaves in full precision and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plumbline.base_model.inputs import are_unknown_experts, left_out
from plumbline.base_model.matrices import matrices
from plumbline.base_model.parts import AUDIO, EMBEDDING, HEAD, KINDS, ROUTER, VISION, kind_of
from plumbline.quantized_model.kv_cache_layers import cache_coverage
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.scheme import LEFT_ALONE, why_not_quantized

APART = (EMBEDDING, HEAD, ROUTER, VISION, AUDIO)
"""Kinds that most users leave alone, and that `Coverage.share` leaves out."""
LEAST_SHARE = 0.95
"""A model of which less is quantized is worth a warning."""
CONV1D = "transformers' Conv1D, which compressed-tensors does not store"


@dataclass(frozen=True)
class Coverage:
    """What a scheme does with the weights of a model.

    Attributes:
        weights: number of weights by kind, all parameters.
        quantized: number of them that are quantized.
        matrices, quantized_matrices: the same for the matrices that are not of a kind in `APART`.
        left: parameter of two or more dimensions in full precision -> reason.
        cache: of keys and values: number of attention modules with scales, `windows` (module -> tokens) and `without`
            (decoder layer -> reason); None: the scheme does not quantize it.
    """

    weights: dict[str, int]
    quantized: dict[str, int]
    matrices: int
    quantized_matrices: int
    left: dict[str, str]
    cache: dict[str, Any] | None = None

    @property
    def share(self) -> float:
        """Share of the matrices' weights outside embeddings, head, routers and towers that is quantized."""
        return self.quantized_matrices / self.matrices if self.matrices else 0.0

    @property
    def share_of_all(self) -> float:
        """Share of all weights of the model that is quantized."""
        return sum(self.quantized.values()) / max(sum(self.weights.values()), 1)

    def record(self) -> dict[str, Any]:
        """JSON-able, for calibration.json."""
        return {
            "share": round(self.share, 6),
            "share_of_all": round(self.share_of_all, 6),
            "kinds": {
                kind: {"weights": self.weights[kind], "quantized": self.quantized.get(kind, 0)}
                for kind in KINDS
                if kind in self.weights
            },
            "left": self.left,
        } | ({} if self.cache is None else {"cache": self.cache})


def coverage_of(
    model: PreTrainedModel,
    quantized: Collection[str],
    scheme: SchemeParams,
    left_by_model: Mapping[str, str],
    cache: Collection[str],
) -> Coverage:
    """The coverage of a model.

    Args:
        model: the base model; weights may be on the meta device.
        quantized: names of the quantized matrices.
        left_by_model, cache: `left` and `cache` of `Quantized`.
    """
    weights: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        weights[kind_of(name)] += parameter.numel()
    of_matrices = of_quantized = 0
    for name, matrix in matrices(model).items():
        kind, apart = kind_of(name), kind_of(name) in APART
        of_matrices += 0 if apart else matrix.numel
        if name in quantized:
            done[kind] += matrix.numel
            of_quantized += 0 if apart else matrix.numel
    left = reasons_of(model, quantized, scheme)
    left |= {f"{name}.weight": reason for name, reason in left_by_model.items()}
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if name in left and (isinstance(module, Conv1D) or are_unknown_experts(module)):
            of_matrices += 0 if kind_of(name) in APART else parameter.numel()
    cached = cache_coverage(model, cache) if cache else None
    return Coverage(dict(weights), dict(done), of_matrices, of_quantized, left, cached)


def reasons_of(model: nn.Module, quantized: Collection[str], scheme: SchemeParams) -> dict[str, str]:
    """Parameter of two or more dimensions that is not quantized -> reason.

    Args:
        quantized: names of the quantized matrices.
    """
    held = {f"{matrix.owner}.{matrix.part}": (name, matrix) for name, matrix in matrices(model).items()}
    unknown, reasons = left_out(model, ()), {}
    for owner, module in model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            key = f"{owner}.{part}" if owner else part
            if parameter.dim() < 2:
                continue
            if key not in held:
                reasons[key] = _why_no_matrix(owner, module, unknown)
                continue
            name, matrix = held[key]
            if name not in quantized:
                reasons[key] = why_not_quantized(name, matrix, module, scheme) or "no scheme selected it"
    return reasons


def _why_no_matrix(name: str, module: nn.Module, unknown: dict[str, str]) -> str:
    """The reason why a parameter of two or more dimensions is none of the matrices that a scheme can quantize."""
    if isinstance(module, nn.Embedding):
        return "embedding: looked up, not multiplied"
    if isinstance(module, Conv1D):
        return CONV1D
    if kind_of(name) == ROUTER:
        return LEFT_ALONE[ROUTER]
    return unknown.get(name, f"{type(module).__name__}: no matrix that a Linear or an expert multiplies with")
