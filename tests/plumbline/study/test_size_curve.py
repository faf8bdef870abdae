"""From which size on nothing is gained, and what is recommended."""

from __future__ import annotations

import numpy as np
import pytest

from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.kv_cache_params import CacheParams
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.result_cache import Measured
from plumbline.study.size_curve import family_of, recommendations, size_curve
from plumbline.study.testing import Family

STRATA = np.repeat([0, 1], 12)
FAMILY = Family(STRATA, 2400, 0.95, 1000, 0)
HESSIAN = SchemeParams(method="gptq", weight_bits=4)
TENSOR = SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams())


def curve(excess: dict[int, float], tokens_each: int = 100, width: int = 1000) -> dict:
    """A scheme whose divergence is so much higher at each size than at the largest."""
    rng = np.random.default_rng(0)
    level = rng.gamma(4, 1.0, 24)
    results = {}
    for n, more in excess.items():
        drawn = [level * (1 + more + 0.01 * rng.standard_normal() + 0.02 * rng.standard_normal(24)) for _ in range(10)]
        results["w4", n] = [Measured(kl, 0, n, n * tokens_each, "", 0) for kl in drawn]
    return size_curve(results, FAMILY, ["w4"], width)[0]


def test_enough_is_the_size_beyond_which_none_is_called_worse() -> None:
    found = curve({8: 0.5, 16: 0.2, 64: 0.0, 256: 0.0})
    assert [(r["against_largest"] or {}).get("verdict") for r in found["sizes"]] == [
        "worse",
        "worse",
        "no difference detected",
        None,
    ]
    assert found["enough"] == 64
    against = found["sizes"][2]["against_largest"]
    assert found["gain_missed"] == against["high"] > 0
    assert found["sentence"].startswith("w4 gains nothing beyond n = 64 that this study could see (at n = 256")


def test_a_gap_between_two_good_sizes_counts_as_a_gain() -> None:
    assert curve({8: 0.0, 16: 0.2, 64: 0.0})["enough"] == 64


def test_what_gains_to_the_end_says_so() -> None:
    found = curve({8: 0.5, 16: 0.3, 64: 0.0})
    assert found["enough"] == 64 and "still gains up to n = 64" in found["sentence"]


def test_what_gets_worse_with_more_texts_says_so() -> None:
    found = curve({8: -0.3, 16: -0.1, 64: 0.0}, width=400)
    assert [(r["against_largest"] or {}).get("verdict") for r in found["sizes"]] == ["better", "better", None]
    assert found["enough"] == 8
    assert found["sentence"] == "w4 gets worse beyond n = 8: there divergence is 30 % lower than at n = 64."


def test_tokens_against_the_width() -> None:
    found = curve({8: 0.0, 40: 0.0, 64: 0.0})
    assert [r["tokens_per_width"] for r in found["sizes"]] == [0.8, 4.0, 6.4] and found["tokens_suffice"] == 40
    assert "no size reaches 4 tokens per channel" in curve({8: 0.0, 39: 0.0})["sentence"]


@pytest.mark.parametrize(
    ("scheme", "family"),
    [
        (HESSIAN, "hessian"),
        (TENSOR, "tensor"),
        (SchemeParams(method="rtn", weight_bits=4, transform="awq"), "channel"),
        (SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams(), transform="smoothquant"), "channel"),
        (SchemeParams(method="rtn", weight_bits=4, range="imatrix"), "channel"),
        (SchemeParams(method="rtn", kv_cache=CacheParams()), "cache"),
        (SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams(), kv_cache=CacheParams()), "tensor"),
        (SchemeParams(method="rtn", weight_bits=4), "none"),
        (SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams(dynamic=True)), "none"),
    ],
)
def test_families(scheme: SchemeParams, family: str) -> None:
    assert family_of(scheme) == family


def test_a_rule_is_recommended_only_where_it_is_better_and_never_worse() -> None:
    curves = [{"scheme": "w4", "enough": 64, "sizes": [{"n": 64, "calibration_tokens": 52_000}]}]

    def say(*called: tuple[str, str, int]) -> str:
        found = [
            {"scheme": "w4", "n": n, "rule": rule, "verdict": verdict, "baseline": "random"}
            for rule, verdict, n in called
        ]
        return str(recommendations(curves, found, {"w4": HESSIAN})[0]["sentence"])

    assert say(("a", "better", 64)).endswith("64 samples, about 52\u202f000 tokens, chosen by a.")
    elsewhere = "chosen by random, as no rule is better at that size (a is at n = 16)."
    assert say(("a", "better", 16)).endswith(elsewhere)
    assert say(("a", "worse", 64)).endswith("as no rule is better at that size.")
    assert say(("a", "better", 64), ("a", "worse", 64)).endswith("as no rule is better at that size.")
