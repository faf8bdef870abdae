from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from plumbline.calibration_report.mcnemar import mcnemar


@given(st.integers(0, 400), st.integers(0, 400))
def test_equals_the_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_by_hand() -> None:
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == 2 / 2**5 and mcnemar(1, 9) == 2 * 11 / 2**10
    assert 0 < mcnemar(900, 1200) < 1e-10  # 2**2100 is no float; the quotient is


def test_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="found -1 and 2"):
        mcnemar(-1, 2)
