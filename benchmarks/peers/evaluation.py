"""Quality of quantized models on a subject's held-out documents, and intervals over these documents."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from benchmarks.peers.subjects import Subject
from plumbline.base_model.load import load_model
from plumbline.calibration_report.bootstrap import bootstrap_ratio, strata_of
from plumbline.calibration_report.verdict import FEWEST_DOCUMENTS
from plumbline.evaluation.base_logits import BaseLogits
from plumbline.evaluation.held_out import batches
from plumbline.evaluation.measure import measure

RESAMPLES, CONFIDENCE = 2000, 0.95
BATCH_TOKENS, BASE_BYTES = 4096, 2**31

Sums = Mapping[str, Any]
"""Per document, in order of domain and document: "domain", "tokens", and sums over its tokens of "kl" (nats), "nll"
(nats, quantized less base) and "top1" (how often both models predict the same token)."""


class Judge:
    """Compares quantized models with the base model of a subject, whose logits are computed once."""

    def __init__(self, about: Subject) -> None:
        self.about = about
        self._work = list(batches(about.held_out, BATCH_TOKENS))
        self._base = BaseLogits(lambda: load_model(about.model, "cpu"), self._work, BASE_BYTES)

    def sums(self, folder: Path) -> Sums:
        """Sums per document of the model in a folder."""
        with contextlib.redirect_stderr(io.StringIO()):  # compressed-tensors' progress bars cannot be disabled
            return self.sums_of(load_model(folder, "cpu"))

    def sums_of(self, model: PreTrainedModel) -> Sums:
        """Sums per document of a model."""
        held_out = self.about.held_out
        pairs = list(zip(held_out.domains, held_out.doc_ids, strict=True))
        documents = sorted(set(pairs))
        row = {document: index for index, document in enumerate(documents)}
        measured, sample_of_token = measure(self._base, model, self._work)
        document_of_token = np.array([row[pair] for pair in pairs])[sample_of_token]

        def total(values: np.ndarray) -> list[float]:
            summed: list[float] = np.bincount(document_of_token, values, len(documents)).tolist()
            return summed

        return {
            "domain": [domain for domain, _ in documents],
            "tokens": total(np.ones(len(measured.kl))),
            "kl": total(measured.kl),
            "nll": total(measured.nll_quantized - measured.nll_base),
            "top1": total(measured.agree.astype(float)),
        }


def interval(sums: Sums, name: str, minus: Sums | None = None) -> tuple[float, float]:
    """The mean per token of a figure, or its difference to another model's, and half of its interval.

    The interval is of a bootstrap over documents within their domains; differences are paired.
    """
    values = np.array(sums[name]) - (0 if minus is None else np.array(minus[name]))
    strata = strata_of(sums["domain"], FEWEST_DOCUMENTS)
    (ratio,) = bootstrap_ratio(values[None], np.array(sums["tokens"]), strata, RESAMPLES, 0)
    return ratio.estimate, ratio.half_width(CONFIDENCE)


def verdict(difference: float, half: float) -> str:
    """What a difference of KL to Plumbline's default says."""
    return "better" if difference + half < 0 else "worse" if difference - half > 0 else "no difference"
