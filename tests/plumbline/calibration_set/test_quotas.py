"""Quotas and fills against references that hand out one sample at a time, or try every split."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plumbline.calibration_set.methods.quotas import apportion, fill

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any)


@given(COUNTS, st.data())
def test_proportional_quotas_are_the_integers_closest_to_the_shares(counts: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, sum(counts)))
    quota = apportion(np.array(counts), n, "proportional")
    exact = [Fraction(n * count, sum(counts)) for count in counts]
    assert quota.sum() == n
    assert all(q in (share.__floor__(), share.__ceil__()) for q, share in zip(quota.tolist(), exact, strict=True))
    assert all(q <= count for q, count in zip(quota.tolist(), counts, strict=True))


def test_largest_remainder_is_the_split_with_the_least_error() -> None:
    """Reference: every way to split n over the buckets; Hamilton's minimises the summed absolute error."""
    for counts in ((5, 3, 2), (7, 1, 1), (10, 10, 1), (0, 4, 9)):
        for n in range(sum(counts) + 1):
            exact = [Fraction(n * count, sum(counts)) for count in counts]

            def error(split: tuple[int, ...], exact: list[Fraction] = exact) -> Fraction:
                return sum((abs(part - share) for part, share in zip(split, exact, strict=True)), Fraction(0))

            best = min(error(split) for split in product(range(n + 1), repeat=3) if sum(split) == n)
            assert error(tuple(apportion(np.array(counts), n, "proportional").tolist())) == best


def test_equal_quotas_differ_by_one_at_most_and_fuller_buckets_get_the_rest() -> None:
    assert apportion(np.array([3, 50, 0, 20]), 10, "equal").tolist() == [2, 3, 2, 3]
    assert apportion(np.array([3, 50, 0, 20]), 1, "equal").tolist() == [0, 1, 0, 0]
    assert apportion(np.array([7, 7]), 5, "equal").tolist() == [3, 2]


def one_at_a_time(available: list[int], quota: list[int]) -> dict[tuple[int, int], int]:
    """The rule of `fill`, spelled out: at each distance, each short bucket takes singles, alternating sides."""
    spare = [max(a - q, 0) for a, q in zip(available, quota, strict=True)]
    lacking = [max(q - a, 0) for a, q in zip(available, quota, strict=True)]
    given: dict[tuple[int, int], int] = {}
    for distance in range(1, len(quota)):
        for short in range(len(quota)):
            sides = [s for s in (short - distance, short + distance) if 0 <= s < len(quota)]
            sides.sort(key=lambda s: (-spare[s], s))
            turn = 0
            while lacking[short] and any(spare[s] for s in sides):
                side = sides[turn % len(sides)]
                turn += 1
                if spare[side]:
                    spare[side] -= 1
                    lacking[short] -= 1
                    given[short, side] = given.get((short, side), 0) + 1
    return given


@given(COUNTS, st.data())
def test_fills_match_handing_out_one_sample_at_a_time(counts: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, sum(counts)))
    quota = apportion(np.array(counts), n, "equal")
    given = fill(np.array(counts), quota)
    assert given == one_at_a_time(counts, quota.tolist())
    filled = np.minimum(counts, quota) + sum(
        (np.eye(len(counts), dtype=int)[giver] * samples for (_, giver), samples in given.items()),
        np.zeros(len(counts), int),
    )
    assert filled.sum() == n
    assert (filled <= counts).all()


@given(COUNTS, st.data())
def test_no_fill_comes_from_afar_while_a_nearer_bucket_has_samples_left(counts: list[int], data: st.DataObject) -> None:
    quota = apportion(np.array(counts), data.draw(st.integers(1, sum(counts))), "equal")
    given = fill(np.array(counts), quota)
    left = [max(c - q, 0) for c, q in zip(counts, quota.tolist(), strict=True)]
    for (_, giver), samples in given.items():
        left[giver] -= samples
    for short, giver in given:
        nearer = [b for b in range(len(counts)) if b != short and abs(b - short) < abs(giver - short)]
        assert all(left[b] == 0 for b in nearer)


def test_an_empty_bucket_is_filled_from_both_sides_in_halves() -> None:
    assert fill(np.array([10, 10, 0, 10, 10]), np.array([4, 4, 4, 4, 4])) == {(2, 1): 2, (2, 3): 2}
    assert fill(np.array([10, 5, 0, 10, 10]), np.array([4, 4, 4, 4, 4])) == {(2, 3): 3, (2, 1): 1}
    assert fill(np.array([10, 4, 0, 4, 10]), np.array([4, 4, 4, 4, 4])) == {(2, 0): 2, (2, 4): 2}
