"""Sub-pools and sets: paired, seeded, by document."""

from __future__ import annotations

import numpy as np
import pytest

from plumbline.study.draws import asked_of, cells, draw_set, sub_pool
from plumbline.study.params import RuleParams
from tests.plumbline.study.conftest import Small


def test_a_sub_pool_is_a_share_of_the_documents_with_all_their_samples(small: Small) -> None:
    pool = small.sources.pool()
    part = sub_pool(pool, 0.8, seed=3)
    assert len(set(part.doc_ids)) == 32 and len(set(pool.doc_ids)) == 40
    kept = set(part.doc_ids)
    assert part.sample_ids == [s for s, d in zip(pool.sample_ids, pool.doc_ids, strict=True) if d in kept]
    np.testing.assert_array_equal(part.stream, pool.stream[np.isin(pool.doc_ids, list(kept))])


def test_sub_pools_are_seeded_and_differ(small: Small) -> None:
    pool = small.sources.pool()
    assert sub_pool(pool, 0.8, 1).sample_ids == sub_pool(pool, 0.8, 1).sample_ids
    assert sub_pool(pool, 0.8, 1).sample_ids != sub_pool(pool, 0.8, 2).sample_ids
    assert sub_pool(pool, 1.0, 1).sample_ids == pool.sample_ids


def test_every_document_is_kept_equally_often(small: Small) -> None:
    pool = small.sources.pool()
    counts = dict.fromkeys(pool.doc_ids, 0)
    for seed in range(400):
        for document in set(sub_pool(pool, 0.8, seed).doc_ids):
            counts[document] += 1
    assert sum(counts.values()) == 400 * 32
    assert min(counts.values()) > 280 and max(counts.values()) < 360  # 320 ± 5 standard deviations of 8


def test_cells_come_draw_after_draw(small: Small) -> None:
    found = cells(small.params())
    assert len(found) == 5 * 2 * 4 and [c.draw for c in found] == sorted(c.draw for c in found)
    of_size = ["random", "lengths", "nonsense", "oracle"]
    assert [(c.n, c.rule) for c in found[:8]] == [(n, rule) for n in (2, 5) for rule in of_size]


def test_the_curve_is_of_the_baseline_and_further_draws_are_of_the_random_rule(small: Small) -> None:
    found = cells(small.params(curve=[3, 5], random_sets=20))
    assert [c.rule for c in found if c.n == 3] == ["random"] * 5
    assert {c.rule for c in found if c.draw >= 5} == {"random"}
    assert [c.draw for c in found if c.n == 2 and c.rule == "random"] == list(range(20))
    options = {"random": {"strategy": "random", "domains": ["code"]}, "b": {"strategy": "length_stratified"}}
    assert max(c.draw for c in cells(small.params(rules=options, random_sets=20))) == 4  # no rule is plain random


def test_a_set_is_what_the_rule_chooses_from_the_sub_pool(small: Small) -> None:
    part = sub_pool(small.sources.pool(), 0.5, 0)
    asked = asked_of("some", RuleParams.model_validate({"strategy": "random", "domains": ["code"]}), 4, 0)
    drawn = draw_set(part, asked).rows
    assert drawn.num_rows == 4 and set(drawn["domain"].to_pylist()) == {"code"}
    assert set(drawn["sample_id"].to_pylist()) <= set(part.sample_ids)


def test_what_cannot_be_drawn_names_the_rule(small: Small) -> None:
    part = sub_pool(small.sources.pool(), 0.5, 0)
    with pytest.raises(ValueError, match="rule some with n = 99 and seed 0.*found"):
        draw_set(part, asked_of("some", RuleParams(strategy="random"), 99, 0))
    with pytest.raises(ValueError, match="^params.yaml, studies, rules: some: .*no option `quotas`"):
        asked_of("some", RuleParams.model_validate({"strategy": "random", "quotas": "equal"}), 4, 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"baseline": "nobody"}, "not among the rules"),
        ({"rules": {"random": {"strategy": "random"}}}, "found only the baseline"),
        ({"sizes": [5, 2]}, "ascending"),
        ({"schemes": ["w4", "w4"]}, "twice"),
        ({"draws": 4}, "greater than or equal to 5"),
        ({"curve": [5, 5]}, "curve: found .5, 5., expected positive numbers"),
        ({"random_sets": 19}, "random_sets: found 19, expected 20 or more"),
        (
            {"rules": {"random": {"strategy": "random"}, "rtn": {"strategy": "random"}}},
            "rtn is a name that every study",
        ),
        (
            {"rules": {"random": {"strategy": "random", "n": 3}, "b": {"strategy": "random"}}},
            "n is varied by the study",
        ),
    ],
)
def test_params_that_do_not_go_together(small: Small, wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small.params(**wrong)
