"""What is called, and how it is said."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from plumbline.calibration_report.bootstrap import holm
from plumbline.calibration_report.wording import percent, signed
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.draws import Cell, cells
from plumbline.study.measuring import UNCALIBRATED
from plumbline.study.page import domains, forest, render, table
from plumbline.study.params import NONSENSE, ORACLE, StudyParams
from plumbline.study.result_cache import Documents, Measured
from plumbline.study.verdict import Evidence
from plumbline.study.verdict import judge as judge_evidence
from plumbline.study.wording import headline

SCHEMES = {"w4": SchemeParams(method="gptq", weight_bits=4), "w3": SchemeParams(method="gptq", weight_bits=3)}
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
            planted = {"random": 0.0, NONSENSE: 0.3, ORACLE: -0.2}
            shift = planted.get(cell.rule, effect.get((scheme, cell.n), 0.0))
            spread = noise if cell.rule == "random" else noise / 8
            kl = level * (1 + shift + spread * rng.standard_normal() + noise * rng.standard_normal(24))
            found[cell, scheme] = Measured(kl, 2000, cell.n, 100 * cell.n, "digest", 0)
    for scheme in SCHEMES:
        found[UNCALIBRATED, scheme] = Measured(level * 1.5, 1500, 0, 0, "", 0)
    return found


def judge(found: dict, documents: Documents, params: StudyParams, schemes: list[str]) -> dict[str, Any]:
    return judge_evidence(Evidence(found, documents, 1000), params, {name: SCHEMES[name] for name in schemes})


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
    assert "<b>: no difference from random detected in 2 of 4 comparisons; could have seen" in found["sentences"][2]
    assert "varies less from draw to draw" in found["sentences"][-1]


def test_what_was_not_seen_says_what_could_have_been_and_what_would_settle_it() -> None:
    found = judge(measured({("w4", 16): -0.1, ("w3", 64): 0.08}), DOCUMENTS, params(), list(SCHEMES))
    (one,) = [c for c in found["comparisons"] if (c["scheme"], c["n"]) == ("w4", 64)]
    assert one["detectable"] > one["smallest_difference"] > abs(one["difference"])
    assert f"could have seen {percent(one['detectable'])} or more" in one["sentence"]
    if one["draws_needed"] is None:
        assert "without more documents" in one["sentence"]
    else:
        assert one["draws_needed"] > 10 and f"{one['draws_needed']:,}".replace(",", " ") in one["sentence"]


def test_controls_are_judged_apart_and_are_no_claims() -> None:
    found = judge(measured({}), DOCUMENTS, params(), list(SCHEMES))
    assert {c["rule"] for c in found["comparisons"]} == {"<b>"} and found["comparisons_tested"] == 4
    verdicts = {(c["rule"], c["scheme"], c["n"]): c["verdict"] for c in found["controls"]}
    assert len(verdicts) == 12
    assert {v for (rule, *_), v in verdicts.items() if rule in ("rtn", "nonsense")} == {"worse"}
    assert {v for (rule, *_), v in verdicts.items() if rule == "oracle"} == {"better"}
    raw = [c["p_value"] for c in found["controls"]]
    assert [c["p_adjusted"] for c in found["controls"]] == pytest.approx(holm(raw))
    for c in found["controls"]:
        if c["rule"] == "rtn":
            assert c["kl_mean"] * 2400 == pytest.approx(measured({})[UNCALIBRATED, c["scheme"]].kl.sum())
    assert "w4, against random: without calibration divergence is +4" in found["on_controls"][0]


def test_nonsense_that_does_as_well_as_text_is_pointed_out() -> None:
    results = measured({})
    for cell in [c for c, _ in results if c.rule == NONSENSE]:
        results[cell, "w4"] = results[Cell(cell.draw, cell.n, "random"), "w4"]
    found = judge(results, DOCUMENTS, params(), list(SCHEMES))
    assert re.search(r"no choice of texts can be expected to matter by [\d.]+ % or more", found["on_controls"][0])
    assert "no choice" not in found["on_controls"][1]


def test_nonsense_that_does_better_than_text_is_pointed_out() -> None:
    results = measured({})
    for cell, scheme in [key for key in results if key[0].rule == NONSENSE and key[1] == "w4"]:
        oracle = results[Cell(cell.draw, cell.n, ORACLE), scheme]
        results[cell, scheme] = oracle
    found = judge(results, DOCUMENTS, params(), list(SCHEMES))
    assert found["on_controls"][0].endswith("it does not count how well texts represent production.")
    assert "Nonsense" not in found["on_controls"][1]


def test_a_control_that_was_not_measured_is_named() -> None:
    results = {key: one for key, one in measured({}).items() if (key[0].rule, key[0].n) != (ORACLE, 64)}
    evidence = Evidence(results, DOCUMENTS, 1000, {(ORACLE, 64): "it needs 40"})
    found = judge_evidence(evidence, params(), SCHEMES)
    assert found["absent_controls"] == [{"control": ORACLE, "n": 64, "why": "it needs 40"}]
    assert [c["n"] for c in found["controls"] if c["rule"] == ORACLE] == [16, 16]


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
    del same[UNCALIBRATED, "w4"]
    reads_nothing = {**SCHEMES, "w4": SchemeParams(method="rtn", weight_bits=4)}
    found = judge_evidence(Evidence(same, DOCUMENTS, 1000), params(), reads_nothing)
    assert "w4 reads no calibration data" in found["on_controls"][0]
    assert found["size_curve"][0]["sentence"] == "w4 gives the same model at every size."
    assert "any set will do" in found["recommendations"][-1]["sentence"]
    verdicts = [c["verdict"] for c in found["comparisons"] if c["scheme"] == "w4"]
    assert verdicts == ["identical", "identical"] and found["comparisons_tested"] == 2
    assert any("same" in s or "identical" in s for s in found["sentences"])
    assert "same weights" in render(found, {})


def test_too_few_documents_or_resamples_are_refused() -> None:
    few = Documents(["a"] * 7, ["code"] * 7, np.ones(7, dtype=np.int64))
    with pytest.raises(ValueError, match="7 held-out documents are too few"):
        judge({}, few, params(), list(SCHEMES))
    with pytest.raises(ValueError, match="too few to find any of 12.*at least 1200"):
        judge({}, DOCUMENTS, params(confidence=0.99), list(SCHEMES))


def test_headline_without_a_difference() -> None:
    one = {"rule": "b", "verdict": "no difference detected"}
    assert headline([one], "a", 10) == "No difference from a was detected for b, over 10 paired draws."
    other = {"rule": "c", "verdict": "worse"}
    assert headline([one, other], "a", 10) == (
        "c is worse in 1 of 1 comparisons with a. No difference from a was detected for b, over 10 paired draws."
    )
    several = [{"rule": rule, "verdict": word} for rule, word in [("d", "better"), ("c", "worse"), ("c", "better")]]
    assert headline([one, *several], "a", 10) == (
        "3 of 4 comparisons with a differ: c (1 better, 1 worse) and d (1 better). "
        "No difference from a was detected for b, over 10 paired draws."
    )


def test_the_page_escapes_names_and_shows_every_comparison() -> None:
    found = judge(measured({("w4", 16): -0.1}), DOCUMENTS, params(), list(SCHEMES))
    page = render(found, {"base model": "b" * 64})
    assert "<b>" not in page and "&lt;b&gt;" in page and "b" * 64 in page
    assert page.count('class="dot"') == 40 and page.count("n = 16") >= 2
    rule = next(of for of in found["by_domain"] if (of["scheme"], of["n"], of["rule"]) == ("w4", 16, "<b>"))
    drawn = domains(found)
    assert drawn["columns"] == [("w4", "code"), ("w4", "prose"), ("w3", "code"), ("w3", "prose")]
    assert [(row["rule"], row["n"]) for row in drawn["rows"]] == [
        ("random", 16),
        ("random", 64),
        ("<b>", 16),
        ("<b>", 64),
    ]
    cell = drawn["rows"][2]["cells"][0]
    assert cell["difference"] == rule["domains"]["code"]["difference"] == pytest.approx(-0.1, abs=0.03)
    assert cell["colour"] == "better" and cell["strength"] > 30 and drawn["full"] == pytest.approx(0.1, abs=0.03)
    assert page.count('<span class="interval">w4</span>') == 2
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
    row = drawn["panels"][0]["groups"][0]["rows"][0]
    assert row["outside"] == 1 and len(row["dots"]) == 9
    assert max(mark["value"] for mark in drawn["ticks"]) < 1
    assert "1 single draw lies beyond the axis" in render(found, {})


def test_signs() -> None:
    assert [signed(x) for x in (0.012, -0.3, 0.0, -4e-5)] == ["+1.2 %", "−30 %", "±0 %", "±0 %"]
