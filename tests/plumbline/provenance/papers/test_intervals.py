"""Intervals of an evaluation's figures: those of the report, and none where there are too few documents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from plumbline.calibration_report.params import ReportParams
from plumbline.calibration_report.study import Study
from plumbline.calibration_report.verdict import judge
from plumbline.provenance.papers.intervals import intervals, intervals_by_domain


def table(documents: int, spread: float = 1.0) -> pa.Table:
    random = np.random.default_rng(1)
    tokens = random.integers(5, 50, documents)
    nll = tokens * (2 + spread * random.random(documents))
    return pa.table(
        {
            "domain": ["a" if i % 3 else "b" for i in range(documents)],
            "n_tokens": tokens,
            "nll_base": nll,
            "nll_quantized": nll + tokens * 0.01 * (1 + spread * random.random(documents)),
            "kl_sum": tokens * (0.1 + spread * random.random(documents)),
            "agree": (tokens * 0.9).astype(np.int64),
        }
    )


def test_the_interval_of_kl_is_the_reports() -> None:
    documents = table(30)
    study = Study(
        ["one"],
        ["w4"],
        {("one", "w4"): {"weights": {}}},
        documents["n_tokens"].to_numpy(),
        {("one", "w4"): documents["kl_sum"].to_numpy()},
        documents["domain"].to_pylist(),
    )
    estimate = judge(study, ReportParams())["estimates"]["one-w4"]
    assert intervals(documents)["kl_mean"] == pytest.approx((estimate["low"], estimate["high"]), rel=1e-12)


def test_perplexity_is_on_its_own_scale() -> None:
    documents = table(30)
    low, high = intervals(documents)["perplexity_ratio"]
    change = (documents["nll_quantized"].to_numpy() - documents["nll_base"].to_numpy()).sum()
    ratio = np.exp(change / documents["n_tokens"].to_numpy().sum())
    assert low < ratio < high and low * high == pytest.approx(ratio**2, rel=1e-9)  # symmetric in the logarithm


def test_few_documents_have_none_and_empty_ones_do_not_count() -> None:
    assert intervals(table(7)) == {} and intervals(table(8)) != {}
    documents = table(8)
    tokens = documents["n_tokens"].to_numpy().copy()
    tokens[0] = 0
    assert intervals(documents.set_column(1, "n_tokens", pa.array(tokens))) == {}
    by_domain = intervals_by_domain(table(15))
    assert by_domain["b"] == {} and "kl_mean" in by_domain["a"]  # 5 and 10 documents
