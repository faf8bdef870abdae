"""A checkpoint against the base model's answers: figures per token, sums per document, and errors per layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from plumbline.divergence import TokenDivergence, predict, token_divergence
from plumbline.evaluation.held_out import HeldOut, predicted_logits
from plumbline.evaluation.metrics import by_domain, by_length, figures
from plumbline.judgement.reference import Reference, layer_outputs


@dataclass(frozen=True)
class MeasuredCheckpoint:
    """One entry per predicted token, in order of sample and position."""

    tokens: TokenDivergence
    """KL(base || checkpoint), log-likelihoods and agreement."""
    reverse_kl: np.ndarray
    """float64 (N,), nats: KL(checkpoint || base)."""
    lost: np.ndarray
    """bool (N,): the base model's most probable token is the true one, the checkpoint's is not."""
    won: np.ndarray
    """bool (N,): the other way."""
    sample_of_token: np.ndarray
    """int64 (N,)."""
    layers: list[float] | None
    """Per layer: mean over tokens of ||checkpoint - base||² / ||base||² of its output; None: not the same layers."""


def measure_checkpoint(
    reference: Reference, model: Any, advance: Callable[[int], Any] = lambda tokens: None
) -> MeasuredCheckpoint:
    """Compare a checkpoint with the base model's answers, a batch at a time.

    Args:
        advance: called with the tokens done.

    Raises:
        ValueError: the vocabularies differ, or a logit is not finite.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for index, batch in enumerate(reference.work):
        logits = predicted_logits(model, batch)
        base = reference.prediction(index, logits.device)
        forward = token_divergence(base, logits)
        own = predict(logits, base.targets)
        backward = token_divergence(own, base.logits)
        right, right_still = ((prediction.top1 == base.targets).cpu() for prediction in (base, own))
        lost, won = (right & ~right_still).numpy(), (~right & right_still).numpy()
        rows = np.repeat(batch.rows, batch.predicted.sum(1).numpy())
        parts.append((forward.kl, forward.nll_base, forward.nll_quantized, forward.agree, backward.kl, lost, won, rows))
        advance(len(rows))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[-1], kind="stable")
    kl, nll_base, nll, agree, reverse, lost, won, rows = (column[order] for column in columns)
    return MeasuredCheckpoint(
        TokenDivergence(kl, nll_base, nll, agree), reverse, lost, won, rows, _layer_errors(reference, model)
    )


def _layer_errors(reference: Reference, model: Any) -> list[float] | None:
    sums, count = torch.zeros(reference.layers, dtype=torch.float64), 0
    for index, batch in enumerate(reference.layer_work):
        for base, own in zip(reference.hidden(index), layer_outputs(model, batch), strict=True):
            if base.shape != own.shape:
                return None
            base, own = base.double(), own.double()
            energy = base.square().sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
            sums += ((own - base).square().sum(-1) / energy).sum(1)
            count += base.shape[1]
    return (sums / max(count, 1)).tolist()


def summary(measured: MeasuredCheckpoint, held_out: HeldOut, ends: tuple[int, ...]) -> dict[str, Any]:
    """The figures of a checkpoint: whole, by domain, by bucket of sample length, and per layer.

    Args:
        ends: of the buckets of sample length, as `evaluation.length_buckets`.
    """
    domains = np.array(held_out.domains)[measured.sample_of_token]
    lengths = np.array([len(ids) for ids in held_out.tokens])[measured.sample_of_token]
    return {
        **figures(measured.tokens),
        "reverse_kl_mean": float(measured.reverse_kl.mean()),
        "correct_to_incorrect": float(measured.lost.mean()),
        "incorrect_to_correct": float(measured.won.mean()),
        "flips": float((measured.lost | measured.won).mean()),
        "by_domain": by_domain(measured.tokens, domains),
        "by_length": by_length(measured.tokens, lengths, ends),
        "layers": None if measured.layers is None else [layer_figures(error) for error in measured.layers],
    }


def layer_figures(squared: float) -> dict[str, float | None]:
    """Relative error and signal-to-quantization-noise ratio in decibels; None where nothing differs."""
    decibels = -10 * math.log10(squared) if squared > 0 else None
    return {"relative_error": math.sqrt(squared), "sqnr": decibels}


def documents(measured: MeasuredCheckpoint, held_out: HeldOut) -> pa.Table:
    """Sums per document over its predicted tokens; documents without one are left out.

    Returns:
        doc_id, domain, n_tokens, kl, reverse_kl, nll_base, nll (sums in nats), agree, lost, won (tokens).
    """
    names = sorted(set(zip(held_out.domains, held_out.doc_ids, strict=True)))
    place = {name: index for index, name in enumerate(names)}
    of_sample = np.array([place[name] for name in zip(held_out.domains, held_out.doc_ids, strict=True)])
    of_token = of_sample[measured.sample_of_token]

    def sums(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(of_token, weights=values, minlength=len(names))

    tokens = measured.tokens
    table = pa.table(
        {
            "doc_id": [doc_id for _, doc_id in names],
            "domain": [domain for domain, _ in names],
            "n_tokens": sums().astype(np.int64),
            "kl": sums(tokens.kl),
            "reverse_kl": sums(measured.reverse_kl),
            "nll_base": sums(tokens.nll_base),
            "nll": sums(tokens.nll_quantized),
            "agree": sums(tokens.agree).astype(np.int64),
            "lost": sums(measured.lost).astype(np.int64),
            "won": sums(measured.won).astype(np.int64),
        }
    )
    return table.filter(pa.array(table["n_tokens"].to_numpy() > 0))
