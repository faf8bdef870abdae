"""Divergence of two next-token distributions, token by token, from exact logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

CHUNK_BYTES = 2**20
"""Bytes of float32 logits processed at a time; they fit into a core's cache (1 MiB is the fastest of 1 to 16)."""
LARGEST_SHIFT = 40.0
"""Above this, e^shift times the smallest float32 probability may not be negligible or finite."""


@dataclass(frozen=True)
class BasePrediction:
    """The base model's predictions of N tokens, computed once and compared with every quantized model."""

    logits: torch.Tensor
    """(N, vocabulary), in the model's dtype."""
    targets: torch.Tensor
    """(N,) int64: the true next tokens."""
    top1: torch.Tensor
    """(N,) int64: the most probable token, the lowest id of ties, as in greedy decoding."""
    nll: torch.Tensor
    """(N,) float64, nats: -log p(target)."""


@dataclass(frozen=True)
class TokenDivergence:
    """One entry per predicted token, all of shape (N,)."""

    kl: np.ndarray
    """float64, nats: KL(base || quantized)."""
    nll_base: np.ndarray
    """float64, nats: -log p(target) under the base model."""
    nll_quantized: np.ndarray
    agree: np.ndarray
    """bool: both models' most probable token is the same."""

    @property
    def delta_p(self) -> np.ndarray:
        """float64 (N,): p_quantized(target) - p_base(target), the Δp of llama.cpp's `--kl-divergence` panel.

        Computed from the difference of the log-likelihoods, which stays precise for nearly equal models.
        """
        change: np.ndarray = np.exp(-self.nll_base) * np.expm1(self.nll_base - self.nll_quantized)
        return change


def predict(logits: torch.Tensor, targets: torch.Tensor) -> BasePrediction:
    """The base model's predictions from its logits (N, vocabulary) and the next tokens (N,) int64.

    Raises:
        ValueError: a logit is not finite.
    """
    top1, nll = [], []
    for rows in _chunks(logits):
        chunk = logits[rows].float()
        top1.append(chunk.argmax(-1))
        true = chunk.gather(-1, targets[rows].unsqueeze(-1)).squeeze(-1)
        nll.append(torch.logsumexp(chunk, -1).double() - true.double())
    prediction = BasePrediction(logits, targets, torch.cat(top1), torch.cat(nll))
    _require_finite("the base model", prediction.nll)
    return prediction


def token_divergence(base: BasePrediction, quantized: torch.Tensor) -> TokenDivergence:
    """Compare the quantized model's logits (N, vocabulary), any float dtype, with the base model's.

    With d = quantized - base logits and m = E_base[d]:  KL = log E_base[e^(d-m)] = log1p(E_base[expm1(d-m)]), because
    both log-partition terms cancel. Unlike the sum of p (log p - log q) in float32, this stays precise for nearly
    equal models: it does not subtract two log-sum-exps of size 10 to get 1e-5. Rows with a shift above
    `LARGEST_SHIFT` are computed by the definition in float64.

    Raises:
        ValueError: the vocabularies differ, or a logit is not finite.
    """
    if base.logits.shape != quantized.shape:
        raise ValueError(
            f"logits of the base model have shape {tuple(base.logits.shape)}, of the quantized one "
            f"{tuple(quantized.shape)}: the two must share tokenizer and vocabulary; quantize this base model again"
        )
    parts = [
        _divergence(base.logits[rows], quantized[rows], base.targets[rows], base.top1[rows], base.nll[rows])
        for rows in _chunks(quantized)
    ]
    kl, nll_quantized, agree = (torch.cat(column) for column in zip(*parts, strict=True))
    _require_finite("the quantized model", nll_quantized)
    return TokenDivergence(kl.cpu().numpy(), base.nll.cpu().numpy(), nll_quantized.cpu().numpy(), agree.cpu().numpy())


def _divergence(
    base: torch.Tensor, quantized: torch.Tensor, targets: torch.Tensor, top1: torch.Tensor, nll_base: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(KL, negative log-likelihood, agreement) of one chunk of rows."""
    base, quantized = base.float(), quantized.float()
    agree = quantized.argmax(-1) == top1
    probability = torch.softmax(base, -1)
    shift = quantized - base
    shift -= shift.gather(-1, top1.unsqueeze(-1))  # a common offset of all logits would cost precision in the mean
    shift -= (torch.linalg.vecdot(probability, shift) / probability.sum(-1)).unsqueeze(-1)
    largest = shift.amax(-1)
    shift_of_target = shift.gather(-1, targets.unsqueeze(-1)).squeeze(-1).double()
    kl = torch.log1p(torch.linalg.vecdot(probability, shift.expm1_()).double())
    nll = nll_base + kl - shift_of_target
    for row in torch.nonzero(~(largest <= LARGEST_SHIFT)).flatten().tolist():  # also true for NaN
        log_p = torch.log_softmax(base[row].double(), -1)
        log_q = torch.log_softmax(quantized[row].double(), -1)
        kl[row] = torch.dot(log_p.exp(), log_p - log_q)
        nll[row] = -log_q[targets[row]]
    return kl.clamp_(min=0), nll, agree  # rounding may leave -1e-9 for equal distributions


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    count, vocabulary = logits.shape
    step = max(1, CHUNK_BYTES // (4 * vocabulary))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _require_finite(model: str, nll: torch.Tensor) -> None:
    n_bad = int((~torch.isfinite(nll)).sum())
    if n_bad:
        raise ValueError(
            f"{model} gives {n_bad} of {len(nll)} tokens of a batch logits that are not finite (inf or NaN); a "
            "float16 model that overflows needs bfloat16 or float32, a broken export needs to be quantized again"
        )
