"""Verdicts on checkpoints: intervals by document, and the cases in which nothing may be said."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from plumbline.calibration_report.bootstrap import holm
from plumbline.judgement.verdicts import _degrees_of_freedom, verdicts
from plumbline.judgement.wording import headline, sentences


def table(documents: int = 20, factor: float = 1.0, seed: int = 0, rise: float = 0.0) -> pa.Table:
    """KL per document times `factor` with noise of its own, and log-likelihoods that rise by `rise` per token."""
    rng = np.random.default_rng(seed)
    tokens = 50 + 10 * np.arange(documents)
    kl = tokens * 0.02 * np.exp(0.3 * np.sin(np.arange(documents))) * factor * np.exp(rng.normal(0, 0.02, documents))
    noise = rng.normal(0, 0.05, documents) * np.sqrt(tokens)
    return pa.table(
        {
            "doc_id": [str(number) for number in range(documents)],
            "domain": ["a", "b"] * (documents // 2),
            "n_tokens": tokens,
            "kl": kl,
            "nll_base": 3.0 * tokens,
            "nll": (3.0 + rise) * tokens + noise,
            "agree": (tokens * 0.9).astype(np.int64),
        }
    )


def test_both_families_are_judged_with_intervals() -> None:
    judged = verdicts({"one": table(), "two": table(factor=1.5, seed=1, rise=0.1), "three": table(seed=2)}, "one")
    assert "against" not in judged["one"]
    two = judged["two"]["against"]
    assert two["verdict"] == "worse" and two["low"] < two["mean"] < two["high"]
    kl = {name: judged[name]["kl"]["mean"] for name in judged}
    assert two["mean"] == pytest.approx(kl["two"] - kl["one"])
    assert two["relative"]["mean"] == pytest.approx(kl["two"] / kl["one"] - 1) and 0.4 < two["relative"]["low"] < 0.5
    assert judged["three"]["against"]["verdict"] == "no difference detected"
    assert judged["two"]["perplexity"]["verdict"] == "worse"
    assert judged["two"]["perplexity"]["mean"] == pytest.approx(np.exp(0.1) - 1, abs=0.01)
    assert judged["one"]["perplexity"]["verdict"] == "no difference detected"
    assert judged["one"]["top1"]["mean"] == pytest.approx(0.9, abs=0.01)


def test_p_values_are_corrected_for_all_checkpoints() -> None:
    tables = {f"m{seed}": table(seed=seed) for seed in range(5)}
    alone = [verdicts({"m0": tables["m0"], name: tables[name]}, "m0")[name]["against"] for name in list(tables)[1:]]
    together = verdicts(tables, "m0")
    expected = holm([one["p_adjusted"] for one in alone])
    found = [together[name]["against"]["p_adjusted"] for name in list(tables)[1:]]
    assert found == pytest.approx(expected, abs=0.02)  # other rows are resampled by the same draws


def test_where_nothing_can_be_said_it_is_said() -> None:
    few = verdicts({"one": table(6), "two": table(6, factor=3, rise=0.5)}, "one")
    assert few["two"]["against"]["verdict"] == few["two"]["perplexity"]["verdict"] == "too few documents"
    assert few["two"]["kl"]["low"] is None
    same = verdicts({"one": table(), "two": table()}, "one")
    assert same["two"]["against"] == {
        **{"mean": 0.0, "low": 0.0, "high": 0.0, "verdict": "identical", "p_adjusted": None},
        "relative": {"mean": 0.0, "low": 0.0, "high": 0.0},
    }
    zero = table().set_column(3, "kl", pa.array(np.zeros(20)))
    assert verdicts({"one": zero, "two": table()}, "one")["two"]["against"]["relative"] is None
    assert "against" not in verdicts({"one": table()}, None)["one"]


def test_degrees_of_freedom_count_documents_of_equal_length() -> None:
    assert _degrees_of_freedom(np.full(20, 7), np.zeros(20, int)) == 19
    assert _degrees_of_freedom(np.array([1000, 1, 1, 1]), np.zeros(4, int)) == 1
    assert _degrees_of_freedom(np.full(20, 7), np.arange(20) % 2) == 18


def models(judged: dict) -> list[dict]:
    return [
        {"name": name, "kl_mean": one["kl"]["mean"], "top1_agreement": one["top1"]["mean"], "verdicts": one}
        for name, one in judged.items()
    ]


def test_sentences_say_what_was_found() -> None:
    three = {"one": table(), "two": table(factor=1.5, seed=1, rise=0.1), "three": table(seed=2), "four": table()}
    rows = models(verdicts(three, "one"))
    assert headline(rows, "one") == (
        "Against one: two is farther from the base model; three is not seen to differ; four is the same, bit for bit."
    )
    said = sentences(rows, "one")
    assert len(said) == 3 + 4
    assert said[0].startswith("two is farther from the base model than one: its divergence is 0.0")
    assert "instead of" in said[0] and " % higher (+" in said[0]
    assert said[1].startswith("No difference detected between three and one")
    assert said[2] == "four and one give the same divergence on every document."
    assert "its perplexity is 1" in said[4] and "no change of its perplexity was detected" in said[3]
    alone = models(verdicts({"one": table(6)}, None))
    assert "on too few documents" in headline(alone, None)
    many = models(verdicts({"one": table(), "two": table(factor=5)}, "one"))
    assert "5.0 times as much" in headline(many, "one")
