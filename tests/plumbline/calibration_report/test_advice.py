"""What to use, whether it matters in practice, and where KL and perplexity disagree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plumbline.calibration_report.advice import PRACTICAL, WHY_THEY_DISAGREE, advise, disagreements, matters
from plumbline.calibration_report.study import Study


def comparison(choice: str, verdict: str, difference: float, **more: Any) -> dict[str, Any]:
    about = {"scheme": "w4", "choice": choice, "baseline": "random", "verdict": verdict, "difference": difference}
    return {**about, "kl_mean": 0.1 + difference, "kl_mean_baseline": 0.1, "smallest_difference": 0.001, **more}


def study(**perplexity: float) -> Study:
    figures = {(choice, "w4"): {"perplexity_quantized": value} for choice, value in perplexity.items()}
    return Study(list(perplexity), ["w4"], figures, np.ones(1), {}, ["d"])


NONE = study(random=7.0, a=7.0, b=7.0)


def said(*comparisons: dict[str, Any]) -> dict[str, Any]:
    [advice] = advise(NONE, comparisons)
    return advice


def test_the_best_of_the_better_ones_is_advised_with_the_size_of_the_difference() -> None:
    advice = said(comparison("a", "better", -0.01), comparison("b", "better", -0.02))
    assert (advice["use"], advice["matters"]) == ("b", True)
    assert advice["sentence"] == (
        "w4: use b. The difference from random is 0.020 nats per token, as much as 2.0 % of perplexity: it matters in "
        "practice."
    )


def test_a_real_difference_can_be_too_small_to_matter() -> None:
    advice = said(comparison("a", "better", -0.0006))
    assert (advice["use"], advice["matters"]) == ("a", False)
    assert "0.00060 nats per token: real, but under 0.005" in advice["sentence"]


def test_what_to_avoid_is_said_beside_what_to_use() -> None:
    advice = said(comparison("a", "better", -0.001), comparison("b", "worse", 0.02))
    assert (advice["use"], advice["matters"]) == ("a", True)
    assert "too small to matter in practice. b is worse. The difference from random is 0.020" in advice["sentence"]


def test_without_a_better_one_the_baseline_is_advised() -> None:
    advice = said(comparison("a", "worse", 0.03), comparison("b", "no difference detected", 0.0))
    assert (advice["use"], advice["matters"]) == ("random", True)
    assert "use random, as no other choice is better; a is worse. The difference" in advice["sentence"]


@pytest.mark.parametrize(("smallest", "words"), [(0.001, "too small to matter"), (0.02, "0.020 nats per token may")])
def test_what_may_have_been_missed_is_said(smallest: float, words: str) -> None:
    advice = said(comparison("a", "no difference detected", 0.0, smallest_difference=smallest))
    assert (advice["use"], advice["matters"]) == ("random", False) and words in advice["sentence"]


def test_same_weights_and_too_few_documents() -> None:
    assert said(comparison("a", "identical", 0.0))["use"] is None
    few = said(comparison("a", "too few documents", 0.5))
    assert (few["use"], few["matters"]) == ("random", None)


def test_only_what_was_called_matters() -> None:
    assert matters(comparison("a", "worse", PRACTICAL)) and not matters(comparison("a", "worse", 0.9 * PRACTICAL))
    assert not matters(comparison("a", "no difference detected", 1.0))


def test_a_lower_kl_with_a_higher_perplexity_is_explained() -> None:
    compared = [comparison("a", "better", -0.01), comparison("b", "no difference detected", 0.002)]
    said = disagreements(study(random=7.0, a=7.5, b=6.9), compared)
    assert said == [
        "w4: KL and perplexity disagree on a: its KL is lower than that of random (0.0900 and 0.100), its perplexity "
        "higher (7.50 and 7.00).",
        WHY_THEY_DISAGREE,
    ]
    [chance, _] = disagreements(study(random=7.0, a=6.9, b=6.9), compared)
    assert "disagree on b" in chance and chance.endswith("the difference in KL may be chance.")
    assert disagreements(study(random=7.0, a=6.9, b=7.1), compared) == []
    assert disagreements(study(random=7.0, a=7.0, b=6.9), [comparison("b", "no difference detected", 0.00002)]) == []
    assert disagreements(study(random=7.0, a=7.004, b=7.0), [comparison("a", "better", -0.01)]) == []  # 7.00 and 7.00
