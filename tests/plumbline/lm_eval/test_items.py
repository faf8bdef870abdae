"""Per-item tables from logged samples, and the comparison by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest

from plumbline.calibration_report.bootstrap import holm
from plumbline.lm_eval.items import compare, item_table


def logged(correct: list[float], metric: str = "acc", filter_: str = "none") -> list[dict]:
    return [
        {"doc_hash": f"d{row:03d}", "prompt_hash": "p", "filter": filter_, "metrics": [metric], metric: value}
        for row, value in enumerate(correct)
    ]


def test_a_row_per_item_whatever_the_order_and_repeats_are_kept_apart() -> None:
    items = logged([1.0, 0.0, 1.0])
    twice = [*items, items[1]]
    table = item_table({"z": reversed(items), "a": twice})
    assert table["task"].to_pylist() == ["a"] * 4 + ["z"] * 3
    assert table["item"].to_pylist()[:4] == ["d000-p-1", "d001-p-1", "d001-p-2", "d002-p-1"]
    assert table["correct"].to_pylist() == [True, False, False, True, True, False, True]


def test_of_several_filters_the_first_counts() -> None:
    both = [*logged([0.0, 1.0], "exact_match", "strict"), *logged([1.0, 1.0], "exact_match", "flexible")]
    assert item_table({"t": both})["correct"].to_pylist() == [False, True]


def test_only_items_that_are_correct_or_not() -> None:
    with pytest.raises(ValueError, match="task t: expected a metric acc or exact_match per item, found bleu"):
        item_table({"t": logged([0.5], "bleu")})
    with pytest.raises(ValueError, match="task t: acc of an item: expected 0 or 1, found 0.5"):
        item_table({"t": logged([0.5])})
    with pytest.raises(ValueError, match="found no item"):
        item_table({"t": []})


def test_mcnemar_per_task_and_holm_over_tasks() -> None:
    rng = np.random.default_rng(0)
    first = {name: (rng.random(200) < 0.6).astype(float) for name in "abc"}
    change = {"a": 0, "b": 0.02, "c": 0.1}
    second = {name: np.where(rng.random(200) < change[name], 0.0, first[name]) for name in "abc"}
    rows = compare(*(item_table({k: logged(list(v)) for k, v in side.items()}) for side in (first, second)))
    p = []
    for row, name in zip(rows, "abc", strict=True):
        b = int(((first[name] == 1) & (second[name] == 0)).sum())
        assert (row["only_first"], row["only_second"], row["items"]) == (b, 0, 200)
        assert row["accuracy_first"] == first[name].mean() and row["accuracy_second"] == second[name].mean()
        assert row["flips"] == b / 200
        p.append(binomtest(b, b, 0.5).pvalue if b else 1.0)
        assert row["p_value"] == pytest.approx(p[-1])
    assert [row["p_adjusted"] for row in rows] == pytest.approx(holm(p))
    assert rows[0]["p_adjusted"] == 1 and rows[2]["p_adjusted"] < 0.05


def test_other_items_are_not_compared() -> None:
    one, other = item_table({"t": logged([1.0, 0.0])}), item_table({"t": logged([1.0])})
    with pytest.raises(ValueError, match="different items"):
        compare(one, other)
    assert isinstance(one, pa.Table)
