"""False alarms of `plumbline judge` on synthetic losses per document, and differences that it must find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from benchmarks.judged_alarms import alarms, exchanged
from plumbline.judgement.verdicts import verdicts


def losses(documents: int, seed: int, factor: float = 1.0) -> pa.Table:
    """Documents of very different length and level, as measured ones are; `factor` multiplies the KL."""
    of_documents, of_model = np.random.default_rng(1), np.random.default_rng(seed)
    tokens = np.maximum(4, np.exp(of_documents.normal(5, 0.9, documents))).astype(np.int64)
    level = 0.02 * np.exp(of_documents.normal(0, 0.7, documents))
    kl = tokens * level * np.exp(of_model.normal(0, 0.2, documents)) * factor
    change = of_model.standard_t(4, documents) * np.sqrt(tokens) * 0.3
    return pa.table(
        {
            "doc_id": [f"{number:04}" for number in range(documents)],
            "domain": ["code" if number % 3 else "prose" for number in range(documents)],
            "n_tokens": tokens,
            "kl": kl,
            "nll_base": 2.0 * tokens,
            "nll": 2.0 * tokens + change,
            "agree": (0.9 * tokens).astype(np.int64),
        }
    )


@pytest.mark.parametrize("documents", [16, 24])
def test_equal_checkpoints_are_called_different_at_no_more_than_the_nominal_rate(documents: int) -> None:
    """150 repetitions: at a true rate of 5 %, 14 or more are called once in a hundred."""
    assert stats.binom.sf(14, 150, 0.05) < 0.01
    found = alarms(losses(60, seed=2), losses(60, seed=3), documents, 150, seed=0)
    assert found.kl <= 14 and found.perplexity <= 14


def test_a_true_difference_is_found() -> None:
    judged = verdicts({"one": losses(40, 2), "two": losses(40, 3, factor=1.6)}, "one")
    verdict = judged["two"]["against"]
    assert verdict["verdict"] == "worse" and verdict["relative"]["low"] > 0.2
    back = verdicts({"two": losses(40, 3, factor=1.6), "one": losses(40, 2)}, "two")["one"]["against"]
    assert back["verdict"] == "better" and back["mean"] == pytest.approx(-verdict["mean"])


def test_exchanging_keeps_every_documents_figures() -> None:
    one, other = losses(30, 2), losses(30, 3)
    tables = exchanged(one, other, 12, np.random.default_rng(0))
    first, second = (tables[name].to_pydict() for name in ("one", "other"))
    assert first["doc_id"] == second["doc_id"] and len(set(first["doc_id"])) == 12
    exchanged_documents = 0
    for place, doc_id in enumerate(first["doc_id"]):
        rows: list[dict[str, Any]] = [table.to_pylist()[int(doc_id)] for table in (one, other)]
        assert {first["kl"][place], second["kl"][place]} == {row["kl"] for row in rows}
        exchanged_documents += first["kl"][place] != rows[0]["kl"]
        assert {first["nll"][place], first["nll_base"][place]} == {rows[0]["nll"], rows[0]["nll_base"]}
    assert 0 < exchanged_documents < 12
