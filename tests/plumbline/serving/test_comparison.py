"""The numbers of a comparison, against the same in plain loops over Python floats."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from plumbline.serving.comparison import Scored, difference


def runs(seed: int = 0, sequences: int = 5) -> tuple[list[Scored], list[Scored]]:
    """Two runs over sequences of unequal length, which differ a little, and in some of the likeliest tokens."""
    rng = np.random.default_rng(seed)
    first, second = [], []
    for _ in range(sequences):
        n, prompt = int(rng.integers(6, 20)), int(rng.integers(2, 5))
        logprobs, likeliest = -rng.exponential(3, n), rng.integers(0, 50, n)
        other = np.where(rng.random(n) < 0.1, likeliest + 1, likeliest)
        first.append(Scored(logprobs, likeliest, prompt))
        second.append(Scored(logprobs + rng.normal(0, 0.1, n), other, prompt))
    return first, second


@pytest.mark.parametrize("seed", range(5))
def test_every_number_is_that_of_its_definition(seed: int) -> None:
    first, second = runs(seed)
    pairs = [
        (b.logprobs[t] - a.logprobs[t], a.likeliest[t] == b.likeliest[t], i, t >= a.prompt - 1)
        for i, (a, b) in enumerate(zip(first, second, strict=True))
        for t in range(len(a.logprobs))
    ]
    changes = [pair[0] for pair in pairs]
    found = difference(first, second)
    assert found.mean == pytest.approx(statistics.fmean(map(abs, changes)), rel=1e-12)
    assert found.largest == max(map(abs, changes))
    assert found.shift == pytest.approx(statistics.fmean(changes), rel=1e-9)
    assert found.equal_next == sum(pair[1] for pair in pairs) / len(pairs)
    assert found.equal_continuations == sum(
        all(same for _, same, i, behind in pairs if i == number and behind) for number in range(len(first))
    )
    assert (found.sequences, found.positions) == (5, len(changes))
    sums = [sum(c - found.shift for c, _, i, _ in pairs if i == number) for number in range(5)]
    assert found.shift_error == pytest.approx(math.sqrt(5 / 4 * sum(s * s for s in sums)) / len(changes), rel=1e-9)


def test_the_error_of_the_shift_is_that_of_independent_sequences() -> None:
    """1,000 draws of 20 sequences of 30 equal positions: their mean scatters as the error says."""
    rng = np.random.default_rng(1)
    shifts, errors = [], []
    for _ in range(1000):
        zero = [Scored(np.zeros(30), np.zeros(30, np.int64), 10)] * 20
        moved = [Scored(np.full(30, rng.normal()), np.zeros(30, np.int64), 10) for _ in range(20)]
        found = difference(zero, moved)
        shifts.append(found.shift)
        errors.append(found.shift_error)
    assert float(np.std(shifts)) == pytest.approx(float(np.mean(errors)), rel=0.05)


def test_a_run_does_not_differ_from_itself() -> None:
    first, _ = runs()
    same = difference(first, first)
    assert (same.mean, same.largest, same.shift, same.equal_next, same.equal_continuations) == (0, 0, 0, 1, 5)


def test_the_first_token_of_a_continuation_belongs_to_it_and_the_prompt_does_not() -> None:
    """Of 3 tokens of prompt and 2 behind them there are 4 positions: 0 and 1 predict prompt, 2 and 3 the rest."""
    one = Scored(np.zeros(4), np.zeros(4, np.int64), 3)
    for position, expected in ((0, 1), (1, 1), (2, 0), (3, 0)):
        likeliest = np.zeros(4, np.int64)
        likeliest[position] = 7
        assert difference([one], [Scored(np.zeros(4), likeliest, 3)]).equal_continuations == expected


def test_one_sequence_has_no_error_and_other_sequences_are_refused() -> None:
    first, second = runs(sequences=1)
    assert difference(first, second).shift_error is None
    with pytest.raises(ValueError, match="different sequences"):
        difference(first, runs(seed=3, sequences=1)[0])
    with pytest.raises(ValueError, match="different sequences"):
        difference([], [])
    with pytest.raises(ValueError, match="1 of .* not finite"):
        difference(
            first,
            [Scored(np.where(np.arange(len(first[0].logprobs)) == 2, np.nan, 0), first[0].likeliest, first[0].prompt)],
        )
