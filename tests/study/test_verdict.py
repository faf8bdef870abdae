"""What is called, and how it is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from assets.calibration_report.bootstrap import holm
from assets.quantized_model.params import SchemeParams
from assets.study.draws import Cell, cells
from assets.study.kept import Documents, Measured
from assets.study.page import forest, render, table
from assets.study.params import StudyParams
from assets.study.verdict import headline, judge, signed

SCHEMES = {"w4": SchemeParams(method="rtn", weight_bits=4), "w3": SchemeParams(method="rtn", weight_bits=3)}
DOCUMENTS = Documents([f"{i:02d}" for i in range(24)], ["code"] * 12 + ["prose"] * 12, np.full(24, 100, dtype=np.int64))


def params(**changed: Any) -> StudyParams:
    rules = {"random": {"strategy": "random"}, "<b>": {"strategy": "first_n"}}
    asked = {
        "rules": rules,
        "sizes": [16, 64],
        "draws": 10,
        "schemes": list(SCHEMES),
        "resamples": 1000,
        "random_sets": 0,
    }
    return StudyParams.model_validate({**asked, **changed})


def measured(effect: dict[tuple[str, int], float], noise: float = 0.02) -> dict[tuple[Cell, str], Measured]:
    """KL with a planted relative effect of the rival per scheme and size."""
    rng = np.random.default_rng(0)
    level = rng.gamma(4, 1.0, 24)
    found = {}
    for cell in cells(params()):
        for scheme in SCHEMES:
            shift = effect.get((scheme, cell.n), 0.0) if cell.rule != "random" else 0.0
            spread = noise if cell.rule == "random" else noise / 8
            kl = level * (1 + shift + spread * rng.standard_normal() + noise * rng.standard_normal(24))
            found[cell, scheme] = Measured(kl, 2000, cell.n, 100 * cell.n, "digest", 0)
    return found


def test_planted_differences_are_called_and_nothing_else() -> None:
    found = judge(measured({("w4", 16): -0.1, ("w3", 64): 0.08}), DOCUMENTS, params(), list(SCHEMES))
    called = {(c["scheme"], c["n"]): c["verdict"] for c in found["comparisons"]}
    none = "no difference detected"
    assert called == {("w4", 16): "better", ("w4", 64): none, ("w3", 16): none, ("w3", 64): "worse"}
    for c in found["comparisons"]:
        assert c["low"] < c["difference"] < c["high"]
        assert (c["p_adjusted"] <= 0.05) == (c["verdict"] != none)
        assert c["smallest_difference"] > (c["high"] - c["low"]) / 2
    raw = [c["p_value"] for c in found["comparisons"]]
    assert [c["p_adjusted"] for c in found["comparisons"]] == pytest.approx(holm(raw)) != pytest.approx(raw)
    assert found["headline"] == "<b> is better in 1 and worse in 1 of 4 comparisons with random."
    assert found["sentences"][0].startswith("w4, n = 16: <b> is better than random: over the draws, divergence")
    assert sum("could have seen" in sentence for sentence in found["sentences"]) == 2
    assert "varies less from draw to draw" in found["sentences"][-1]


def test_a_figure_of_an_arm_is_the_mean_over_draws_and_tokens() -> None:
    results = measured({})
    found = judge(results, DOCUMENTS, params(), list(SCHEMES))
    arm = next(a for a in found["arms"] if (a["scheme"], a["n"], a["rule"]) == ("w3", 16, "random"))
    values = [results[Cell(draw, 16, "random"), "w3"].kl.sum() / 2400 for draw in range(10)]
    assert arm["kl_mean"] == pytest.approx(np.mean(values)) and arm["kl_sd"] == pytest.approx(np.std(values, ddof=1))
    assert arm["top1_agreement"] == pytest.approx(2000 / 2400) and arm["calibration_tokens"] == 1600


def test_a_scheme_that_reads_no_calibration_gives_identical_models() -> None:
    results = measured({})
    same = {key: results[Cell(0, 16, "random"), "w4"] if key[1] == "w4" else result for key, result in results.items()}
    found = judge(same, DOCUMENTS, params(), list(SCHEMES))
    verdicts = [c["verdict"] for c in found["comparisons"] if c["scheme"] == "w4"]
    assert verdicts == ["identical", "identical"] and found["comparisons_tested"] == 2
    assert any("same" in s or "identical" in s for s in found["sentences"])
    assert "same weights" in render(found, {})


def test_too_few_documents_or_resamples_are_refused() -> None:
    few = Documents(["a"] * 7, ["code"] * 7, np.ones(7, dtype=np.int64))
    with pytest.raises(ValueError, match="7 held-out documents are too few"):
        judge({}, few, params(), list(SCHEMES))
    with pytest.raises(ValueError, match="cannot call any of 4.*at least 400"):
        judge({}, DOCUMENTS, params(confidence=0.99, resamples=200), list(SCHEMES))


def test_headline_without_a_difference() -> None:
    one = {"rule": "b", "verdict": "no difference detected"}
    assert headline([one], "a", 10) == "No difference between b and a was detected over 10 paired draws."


def test_the_page_escapes_names_and_shows_every_comparison() -> None:
    found = judge(measured({("w4", 16): -0.1}), DOCUMENTS, params(), list(SCHEMES))
    page = render(found, {"base model": "b" * 64})
    assert "<b>" not in page and "&lt;b&gt;" in page and "b" * 64 in page
    assert page.count('class="dot"') == 40 and page.count("n = 16") >= 2
    rows = table(found)
    assert [(r["scheme"], r["n"], r["rule"]) for r in rows[:3]] == [
        ("w4", 16, "random"),
        ("w4", 16, "<b>"),
        ("w4", 64, "random"),
    ]
    assert rows[0]["compared"] is None and rows[1]["compared"]["verdict"] == "better"


def test_a_stray_draw_does_not_swallow_the_axis() -> None:
    found = judge(measured({}), DOCUMENTS, params(), list(SCHEMES))
    for c in found["comparisons"]:
        c["draws"] = [0.0] * 10
    found["comparisons"][0]["draws"][3] = 5.0
    drawn = forest(found)
    row = drawn["groups"][0]["rows"][0]
    assert row["outside"] == 1 and len(row["dots"]) == 9
    assert max(mark["value"] for mark in drawn["ticks"]) < 1
    assert "1 single draw lies beyond the axis" in render(found, {})


def test_signs() -> None:
    assert [signed(x) for x in (0.012, -0.3, 0.0)] == ["+1.2 %", "−30 %", "±0 %"]
