from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plumbline.calibration_set.methods.greedy import lazy_greedy
from plumbline.calibration_set.strategies import get
from plumbline.calibration_set.strategies.activation_coverage import ActivationCoverage
from plumbline.calibration_set.strategies.bandit_coverage import Arms, Bandit, Target, explore, select
from plumbline.calibration_set.strategies.base import Pool, Selection, generator
from plumbline.sample_features.signatures import Signatures, SignatureSite
from tests.helpers.calibration_pool import make_pool
from tests.helpers.tokenized_samples import sample

SITES = (SignatureSite("a", 3, 0), SignatureSite("b", 2, 3))


def signatures(names: Sequence[str], cells: Any, absmax: Any) -> Signatures:
    cells, absmax = np.asarray(cells, np.int32), np.asarray(absmax, np.float32)
    nothing = np.zeros((len(names), 2), np.float32)
    return Signatures(
        tuple(names), SITES, cells[:, 0].sum(-1), nothing, cells, absmax, np.zeros((len(names), 2, 1, 1), np.float32)
    )


def planted(
    count: int = 400,
    rare: int = 20,
    cells: int = 24,
    seed: int = 0,
    stored: bool = False,
    length: int = 50,
    noise: bool = False,
) -> Pool:
    """`rare` samples near each other in the embedding hold the cells that most of the tuning split falls in.

    With `noise` every sample also has something of every cell, and outliers of its own.
    """
    rng = np.random.default_rng(seed)
    rows = [sample(number, length) for number in range(count)]
    tuning = [sample(5000 + number, length, split="tuning") for number in range(30)]
    centres = rng.normal(size=(8, 12))
    embeddings, counts = {}, np.zeros((count + 30, 2, cells), np.int64)
    for number, row in enumerate(rows):
        group = 7 if number < rare else number % 7
        embedding = centres[group] + 0.2 * rng.normal(size=12)
        embeddings[row["sample_id"]] = embedding / np.linalg.norm(embedding)
        where = 4 + rng.permutation(cells - 4)[:2] if number < rare else rng.integers(0, 4, size=2)
        for place in where:
            counts[number, :, place] += length // 2
    for number in range(30):
        for place in (rng.integers(0, 4), *(4 + rng.integers(0, cells - 4, size=4))):
            counts[count + number, :, place] += length // 5
    everything = [*rows, *tuning]
    absmax = np.ones((count + 30, 5))
    if noise:
        counts += rng.integers(0, 3, size=counts.shape)
        absmax = rng.gamma(2, size=absmax.shape)
    made = signatures([row["sample_id"] for row in everything], counts, absmax)
    pool = make_pool(rows=rows, tuning=tuning, embeddings=embeddings, signatures=made)
    if not stored:  # of the pool nothing is stored: every look is a forward pass
        readers = replace(pool.readers, signed=lambda: [row["sample_id"] for row in tuning])
        pool = replace(pool, readers=readers, tuning=replace(pool.tuning, readers=readers))
    return pool


class Counted:
    """A pool whose looks are counted."""

    def __init__(self, pool: Pool) -> None:
        self.seen: list[list[str]] = []
        inner = pool.readers.signatures

        def read(names: Sequence[str]) -> Signatures:
            self.seen.append(list(names))
            return inner(names)

        self.pool = replace(pool, readers=replace(pool.readers, signatures=read))


def choose(pool: Pool, n: int, seed: int = 0, **options: Any) -> Selection:
    return select(pool, n, generator(seed, "bandit_coverage"), **options)


def test_the_bounds_are_discounted_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    x, pulls, rewards = rng.normal(size=(5, 3)), rng.integers(0, 5, size=40), rng.normal(size=40)
    bandit = Bandit(x, alpha=0.7, discount=0.9, ridge=2.0)
    np.testing.assert_allclose(bandit.bounds(), 0.7 * np.sqrt((x**2).sum(1) / 2.0), atol=1e-9)
    for arm, reward in zip(pulls, rewards, strict=True):
        bandit.update(int(arm), float(reward))
    weight = 0.9 ** np.arange(39, -1, -1)
    X = x[pulls]
    V = X.T @ np.diag(weight) @ X + 2.0 * np.eye(3)
    theta = np.linalg.inv(V) @ X.T @ (weight * rewards)
    expected = [m @ theta + 0.7 * np.sqrt(m @ np.linalg.inv(V) @ m) for m in x]
    np.testing.assert_allclose(bandit.bounds(), expected, atol=2e-9)
    np.testing.assert_allclose(  # the same theta by least squares on rows for the ridge below the data
        theta,
        np.linalg.lstsq(
            np.vstack([np.sqrt(weight)[:, None] * X, np.sqrt(2.0) * np.eye(3)]),
            np.append(np.sqrt(weight) * rewards, np.zeros(3)),
        )[0],
    )


def test_one_sample_at_a_time_is_the_coverage_of_activation_coverage() -> None:
    rng = np.random.default_rng(1)
    names = [f"{number}" for number in range(30)]
    mine = signatures(names, rng.integers(0, 9, size=(30, 2, 6)) + 1, rng.gamma(2, size=(30, 5)))
    reference = signatures(names, rng.integers(0, 9, size=(30, 2, 6)) + 1, rng.gamma(2, size=(30, 5)))
    whole = ActivationCoverage.of(mine, reference, 4, 0.3)
    target = Target(reference, 4, 0.3)
    parts = [target.of(mine.take([row])) for row in range(30)]
    expected, gains = lazy_greedy(whole, np.arange(30), 4)
    chosen, found, f = target.greedy(parts, 4)
    assert chosen.tolist() == expected.tolist() and found == gains
    assert f == pytest.approx(sum(gains))
    assert f == whole.reached(expected)[0]


class Recording(Bandit):
    """Keeps what it was taught."""

    def __init__(self, features: np.ndarray) -> None:
        super().__init__(features, alpha=0.5, discount=0.9)
        self.taught: list[tuple[int, float]] = []

    def update(self, arm: int, reward: float) -> None:
        self.taught.append((arm, reward))
        super().update(arm, reward)


def test_the_rewards_are_gains_over_what_was_accepted_per_thousand_tokens() -> None:
    pool = planted(noise=True)
    target = Target(pool.tuning.signatures(pool.tuning.signed), 4, 0.5)
    arms = Arms.of(pool, 6, np.random.default_rng(0))
    rng, bandit = np.random.default_rng(1), Recording(arms.features)
    seen = explore(arms, pool.lengths / 1000, lambda row: target.of(pool.signatures([row])), rng, bandit, 40, 0.25)
    whole = ActivationCoverage.of(pool.signatures(np.arange(400)), pool.tuning.signatures(pool.tuning.signed), 4, 0.5)
    accepted: list[int] = []
    rewards: list[float] = []
    for look in seen:
        before = whole.reached(np.array(accepted, dtype=np.int64))[0]
        reward = (whole.reached(np.array([*accepted, look.row]))[0] - before) * 1000 / 50
        assert look.reward == pytest.approx(reward, abs=1e-9)
        assert arms.labels[look.row] == look.arm
        assert look.accepted == (not rewards or look.reward > np.quantile(rewards[-32:], 0.75))
        rewards.append(look.reward)
        if look.accepted:
            accepted.append(look.row)
    assert any(look.reward > 0 and not look.accepted for look in seen)
    assert 1 < len(accepted) < 40
    assert len({look.row for look in seen}) == 40
    for at, (arm, taught) in enumerate(bandit.taught):  # against the discounted mean of all rewards so far
        mean = np.average(rewards[: at + 1], weights=0.9 ** np.arange(at, -1, -1))
        assert arm == seen[at].arm and taught == pytest.approx(rewards[at] / mean - 1)


def test_it_finds_the_arm_that_holds_what_production_does() -> None:
    """5 % of the pool hold 20 of the 24 cells: random looks meet them 2 times in 40, the bandit goes there."""
    ours, theirs = [], []
    for seed in range(10):
        notes = choose(planted(seed=seed), 10, seed, arms=8, outliers=0.0).notes
        ours.append(notes["coverage"]["bandit"])
        theirs += notes["coverage"]["random_looks"]
        assert notes["looks"] == 40
        assert [arm["looks"] >= 6 for arm in notes["arms"] if arm["samples"] == 20] == [True]
    assert np.mean(ours) > np.mean(theirs) + 0.15
    assert "the bandit won" in notes["verdict"]


def test_alpha_and_discount_act() -> None:
    pool = planted()
    looks = [
        [arm["looks"] for arm in choose(pool, 10, arms=8, **options).notes["arms"]]
        for options in ({"alpha": 0.0}, {"alpha": 50.0}, {"alpha": 0.5, "discount": 0.5})
    ]
    assert max(looks[1]) - min(looks[1]) <= 3 < max(looks[0]) - min(looks[0])  # curious alone: every arm alike
    assert looks[2] != looks[0]
    assert len(choose(pool, 10, arms=3).notes["arms"]) == 3


def test_rewards_per_token_look_at_the_short() -> None:
    """Half of the pool, told by its length, has a tenth of the tokens and covers less, but more per token."""
    rng = np.random.default_rng(0)
    rows = [sample(number, 20 if number % 2 else 200) for number in range(200)]
    tuning = [sample(900 + number, 200, split="tuning") for number in range(20)]
    everything = [*rows, *tuning]
    cells = np.stack([rng.multinomial(row["n_tokens"], np.ones(6) / 6, size=2) for row in everything])
    made = signatures([row["sample_id"] for row in everything], cells, np.ones((220, 5)))
    embeddings = {row["sample_id"]: np.ones(4) / 2 for row in everything}
    pool = make_pool(rows=rows, tuning=tuning, embeddings=embeddings, signatures=made)

    def long_looks(reward: str) -> int:
        arms = choose(pool, 20, arms=2, reward=reward, outliers=0.0).notes["arms"]
        return sum(arm["looks"] for arm in arms if arm["median_tokens"] == 200)

    assert long_looks("tokens") + 20 < long_looks("sample")


@pytest.mark.parametrize(("looks", "budget"), [(None, 20), (5, 5), (33, 33), (10**6, 60)])
@pytest.mark.parametrize("rival_draws", [1, 3])
def test_the_budget_is_kept(looks: int | None, budget: int, rival_draws: int) -> None:
    counted = Counted(planted(count=60, rare=6))
    selection = choose(counted.pool, 5, looks=looks, rival_draws=rival_draws)
    assert all(len(names) == 1 for names in counted.seen)
    looked = [names[0] for names in counted.seen]
    assert len(looked) == budget * (1 + rival_draws)
    assert all(len(set(looked[start : start + budget])) == budget for start in range(0, len(looked), budget))
    mine = looked[:budget]
    assert budget == 60 or set(mine) != set(looked[budget : 2 * budget])  # the rival looks for itself
    assert set(counted.pool.names(selection.indices)) <= set(mine)  # it takes what it has seen
    assert selection.notes["looks"] == selection.notes["forward_passes"] == budget
    assert len(selection.notes["coverage"]["random_looks"]) == rival_draws
    assert [mine[reason["look"] - 1] for reason in selection.reasons] == counted.pool.names(selection.indices)


def test_stored_signatures_count_as_looks_and_give_the_bound() -> None:
    pool = planted(stored=True)
    selection = choose(pool, 8, outliers=0.0)
    assert selection.notes["looks"] == 32 and selection.notes["forward_passes"] == 0
    whole = ActivationCoverage.of(pool.signatures(np.arange(400)), pool.tuning.signatures(pool.tuning.signed), 8, 0.0)
    rows, _ = lazy_greedy(whole, np.arange(400), 8)
    found = selection.notes["coverage"]
    assert found["greedy_on_all"] == round(whole.reached(rows)[0], 6)
    assert found["bandit"] == round(whole.reached(selection.indices)[0], 6) <= found["greedy_on_all"]
    assert found["difference"] == round(found["bandit"] - found["random_looks"][0], 6)
    assert sum(reason["gain"] for reason in selection.reasons) == pytest.approx(found["bandit"], abs=1e-6)
    assert sum(arm["looks"] for arm in selection.notes["arms"]) == 32
    assert sum(arm["samples"] for arm in selection.notes["arms"]) == 400
    assert "greedy_on_all" not in choose(planted(), 8).notes["coverage"]


def test_same_seed_same_choice_at_any_order_on_disk() -> None:
    first, second = (choose(planted(), 6, seed=3) for _ in range(2))
    assert first.indices.tolist() == second.indices.tolist()
    assert json.dumps([first.reasons, first.notes]) == json.dumps([second.reasons, second.notes])
    assert choose(planted(), 6, seed=4).indices.tolist() != first.indices.tolist()


def same(count: int) -> Pool:
    """Samples that only their ids tell apart, some with embeddings of zero length."""
    rows = [sample(number, 20) for number in range(count)]
    tuning = [sample(900 + number, 20, split="tuning") for number in range(3)]
    names = [row["sample_id"] for row in (*rows, *tuning)]
    made = signatures(names, np.full((len(names), 2, 4), 5), np.ones((len(names), 5)))
    return make_pool(rows=rows, tuning=tuning, embeddings=dict.fromkeys(names, np.zeros(4)), signatures=made)


@pytest.mark.parametrize(("count", "n"), [(1, 1), (12, 1), (12, 5), (12, 12)])
@pytest.mark.parametrize("arms", [1, 32])
def test_all_samples_equal(count: int, n: int, arms: int) -> None:
    selection = choose(same(count), n, arms=arms)
    assert len(set(selection.indices.tolist())) == n == len(selection.reasons)
    assert selection.notes["coverage"]["difference"] == 0 and "neither won." in selection.notes["verdict"]
    assert all(np.isfinite(reason["reward"]) for reason in selection.reasons)


def test_too_few_looks_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"looks = 3 is less than n = 4; raise looks in params\.yaml"):
        choose(planted(), 4, looks=3)
    with pytest.raises(ValueError, match="rival_draws"):
        get("bandit_coverage").options(rival_draws=0)
