from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.calibration_set.strategies.base import generator
from plumbline.calibration_set.strategies.first_n import select
from tests.helpers.calibration_pool import make_pool, rows_of
from tests.helpers.tokenized_samples import sample, write_samples


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_the_first_on_disk_are_taken_in_their_order(order: list[int], n: int) -> None:
    pool = make_pool([5 + i for i in range(12)], order)
    selection = select(pool, n, generator(0, "first_n"))
    assert pool.lengths[selection.indices].tolist() == [5 + i for i in order[:n]]
    assert selection.reasons == [{"place": place} for place in range(n)]
    assert selection.notes == {"baseline": "the first samples of the stream", "last_place": n - 1}


def test_the_seed_changes_nothing() -> None:
    pool = make_pool(range(5, 25))
    first, second = (select(pool, 7, generator(seed, "first_n")) for seed in (0, 1))
    assert np.array_equal(first.indices, second.indices)


def test_a_set_on_disk_follows_the_shards_and_the_filter_by_domain(tmp_path: Path, choose: Callable[..., Path]) -> None:
    rows = [sample(i, 20 + i, domain="prose" if i % 3 else "code") for i in range(12)]
    straight = write_samples(tmp_path / "straight", rows)
    reverse = write_samples(tmp_path / "reverse", rows[::-1])
    lengths = [
        [row["n_tokens"] for row in rows_of(choose(where, strategy="first_n", n=3))] for where in (straight, reverse)
    ]
    assert lengths == [[20, 21, 22], [31, 30, 29]]
    code = rows_of(choose(straight, strategy="first_n", n=3, domains=["code"]))
    assert [(row["n_tokens"], row["reason"]["place"]) for row in code] == [(20, 0), (23, 3), (26, 6)]
