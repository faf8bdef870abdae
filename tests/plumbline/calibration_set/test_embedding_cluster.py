from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plumbline.artifact import write_json, write_table
from plumbline.calibration_set.methods.quotas import fill_nearest
from plumbline.calibration_set.pool import Sources
from plumbline.calibration_set.strategies.base import Pool, Selection, generator
from plumbline.calibration_set.strategies.embedding_cluster import select
from plumbline.sample_features.signatures import Signatures, SignatureSite
from plumbline.tokenized_samples.batches import SAMPLES
from tests.helpers.calibration_pool import make_pool, rows_of
from tests.helpers.tokenized_samples import FINGERPRINT, sample, write_samples


def choose(pool: Pool, n: int, seed: int = 0, **options: Any) -> Selection:
    return select(pool, n, generator(seed, "embedding_cluster"), **options)


def pool_of(points: NDArray[Any], order: list[int] | None = None) -> Pool:
    """A pool whose sample i has length i + 2 and the embedding points[i]."""
    rows = [sample(i, i + 2) for i in range(len(points))]
    embeddings = {row["sample_id"]: point for row, point in zip(rows, points, strict=True)}
    return make_pool([i + 2 for i in range(len(points))], order, embeddings=embeddings)


def numbers(pool: Pool, selection: Selection) -> list[int]:
    """Which points were chosen, as `pool_of` numbers them."""
    return (pool.lengths[selection.indices] - 2).tolist()


def groups(sizes: list[int], spread: float = 0.05, d: int = 16, seed: int = 0) -> NDArray[np.float64]:
    """Points of length 1 in groups of those sizes, far from each other."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(np.eye(d)[: len(sizes)], sizes, axis=0)
    points = centres + spread * rng.standard_normal(centres.shape)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def activations_of(pool: Pool, pooled: dict[str, NDArray[Any]]) -> Signatures:
    names = tuple(pooled)
    n = len(names)
    return Signatures(
        names,
        (SignatureSite("layer", 4, 0),),
        np.full(n, 5, np.int64),
        np.stack([pooled[name] for name in names]).astype(np.float32),
        np.full((n, 1, 1), 5, np.int32),
        np.ones((n, 4), np.float32),
        np.ones((n, 1, 2, 2), np.float32),
    )


def test_of_each_cluster_the_sample_nearest_to_its_mean() -> None:
    """Reference: the groups are known, the means and distances are taken by brute force."""
    sizes = [30, 20, 10, 5]
    points = groups(sizes).astype(np.float16)
    pool = pool_of(points)
    selection = choose(pool, 4)
    expected = []
    for group in np.split(np.arange(65), np.cumsum(sizes)[:-1]):
        members = points[group].astype(np.float64)
        expected.append(int(group[np.argmin(np.linalg.norm(members - members.mean(axis=0), axis=1))]))
    assert numbers(pool, selection) == expected  # the largest cluster first
    for reason, size, number, group in zip(
        selection.reasons, sizes, expected, np.split(points, np.cumsum(sizes)[:-1]), strict=True
    ):
        apart = np.linalg.norm(points[number].astype(float) - group.astype(float).mean(axis=0))
        assert (reason["size"], reason["rank"]) == (size, 0)
        assert reason["distance"] == pytest.approx(apart, abs=1e-4)
    assert selection.notes["clusters"] == {"size": sizes, "quota": [1, 1, 1, 1]}
    assert (selection.notes["clustered"], selection.notes["empty"], selection.notes["fills"]) == (65, 0, [])


def test_quotas_equal_or_proportional() -> None:
    pool = pool_of(groups([40, 20, 12, 8]))
    even = choose(pool, 20, clusters=4)
    assert Counter(reason["cluster"] for reason in even.reasons) == {0: 5, 1: 5, 2: 5, 3: 5}
    mix = choose(pool, 20, clusters=4, quotas="proportional")
    assert Counter(reason["cluster"] for reason in mix.reasons) == {0: 10, 1: 5, 2: 3, 3: 2}
    assert [reason["cluster"] for reason in mix.reasons[:4]] == [0, 1, 2, 3]  # every cluster once, then again
    assert sorted(r["rank"] for r in mix.reasons if r["cluster"] == 0) == list(range(10))


def test_random_picks_are_random_within_the_cluster() -> None:
    """12 samples, 2 clusters of 6, one of each, 240 seeds: each 40 times, within 5 standard deviations (5.8)."""
    pool = pool_of(groups([6, 6]))
    picks = [choose(pool, 2, seed, pick="random") for seed in range(240)]
    counts = np.bincount([number for selection in picks for number in numbers(pool, selection)], minlength=12)
    assert (abs(counts - 40) < 29).all()
    ranks = Counter(reason["rank"] for selection in picks for reason in selection.reasons)
    assert set(ranks) == set(range(6))
    assert len({tuple(numbers(pool, choose(pool, 2, seed))) for seed in range(20)}) == 1  # nearest: always the same


def test_a_cluster_that_runs_short_is_filled_from_the_nearest_centroid() -> None:
    """Groups at 0, 20 and 90 degrees with 2, 12 and 20 samples; the small one asks for 8 and the near one gives 6."""
    angles = np.radians(np.concatenate([np.linspace(0, 1, 2), np.linspace(20, 22, 12), np.linspace(90, 93, 20)]))
    pool = pool_of(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    selection = choose(pool, 15, clusters=3)
    assert selection.notes["clusters"] == {"size": [20, 12, 2], "quota": [5, 5, 5]}
    assert selection.notes["fills"] == [{"short": 2, "from": 1, "samples": 3}]
    assert Counter((r["cluster"], r.get("fills")) for r in selection.reasons) == {
        (0, None): 5, (1, None): 5, (2, None): 2, (1, 2): 3,
    }  # fmt: skip
    more = choose(pool, 27, clusters=3)  # 9 each: 7 lacking, the near one has 3 to spare, the far one the rest
    assert [tuple(f.values()) for f in more.notes["fills"]] == [(2, 1, 3), (2, 0, 4)]


POINTS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=24)


@settings(deadline=None, max_examples=40)
@given(
    POINTS,
    st.sampled_from(["equal", "proportional"]),
    st.sampled_from(["centroid", "random"]),
    st.integers(0, 3),
    st.data(),
)
def test_always_n_distinct_samples_and_quotas_that_add_up(
    rows: list[tuple[int, int]], quotas: str, pick: str, seed: int, data: st.DataObject
) -> None:
    """Few points on a small grid: duplicates, zero vectors, empty clusters and sets of everything all occur."""
    points = np.array(rows) / 5
    n = data.draw(st.integers(1, len(points)))
    clusters = data.draw(st.none() | st.integers(1, 30))
    pool = pool_of(points)
    options = {"clusters": clusters, "quotas": quotas, "pick": pick}
    selection = choose(pool, n, seed, **options)
    assert len(set(selection.indices.tolist())) == len(selection.indices) == len(selection.reasons) == n
    sizes, quota = selection.notes["clusters"]["size"], selection.notes["clusters"]["quota"]
    assert len(sizes) == min(clusters or n, len(points)) and sum(sizes) == len(points) and sum(quota) == n
    chosen = Counter(reason["cluster"] for reason in selection.reasons)
    fills = Counter((r["fills"], r["cluster"]) for r in selection.reasons if "fills" in r)
    assert fills == {(f["short"], f["from"]): f["samples"] for f in selection.notes["fills"]}
    for cluster, (size, share) in enumerate(zip(sizes, quota, strict=True)):
        own = chosen[cluster] - sum(count for (_, giver), count in fills.items() if giver == cluster)
        assert own == min(size, share)
        assert own + sum(count for (short, _), count in fills.items() if short == cluster) == share
    for reason in selection.reasons:
        assert reason["size"] == sizes[reason["cluster"]] > reason["rank"] >= 0
    json.dumps([selection.reasons, selection.notes])
    # the order on disk changes nothing
    shuffled = pool_of(points, data.draw(st.permutations(range(len(points)))))
    again = choose(shuffled, n, seed, **options)
    assert (numbers(shuffled, again), again.reasons, again.notes) == (
        numbers(pool, selection), selection.reasons, selection.notes,
    )  # fmt: skip


@pytest.mark.parametrize("quotas", ["equal", "proportional"])
def test_all_samples_equal(quotas: str) -> None:
    pool = pool_of(np.tile([0.6, 0.8], (9, 1)))
    selection = choose(pool, 4, quotas=quotas)
    assert len(set(numbers(pool, selection))) == 4
    assert selection.notes["clusters"]["size"] == [9, 0, 0, 0]
    assert selection.notes["empty"] == 3
    assert all(reason["distance"] == 0 for reason in selection.reasons)
    assert sum(f["samples"] for f in selection.notes["fills"]) == (3 if quotas == "equal" else 0)


def test_one_sample_and_all_samples() -> None:
    points = groups([5, 4])
    pool = pool_of(points)
    single = choose(pool, 1)
    x = points.astype(np.float16).astype(float)
    assert numbers(pool, single) == [int(np.argmin(np.linalg.norm(x - x.mean(axis=0), axis=1)))]
    assert sorted(numbers(pool, choose(pool, 9))) == list(range(9))
    assert sorted(numbers(pool, choose(pool, 9, clusters=2, quotas="proportional"))) == list(range(9))


def test_activations_cluster_the_samples_whose_signature_is_stored() -> None:
    """Embeddings would refuse to be read; lengths of activations other than 1 are fine."""
    pool = make_pool(range(2, 42))
    stored = pool.sample_ids[::2]
    points = 3.7 * groups([12, 8], d=4)
    with_activations = make_pool(range(2, 42), signatures=activations_of(pool, dict(zip(stored, points, strict=True))))
    selection = choose(with_activations, 2, features="activations")
    for reason, row, group in zip(selection.reasons, selection.indices, np.split(points, [12]), strict=True):
        apart = np.linalg.norm(group - group.mean(axis=0), axis=1)
        assert row == 2 * (int(np.argmin(apart)) + 12 * (len(group) == 8))
        assert reason["size"] == len(group)
        assert reason["distance"] == pytest.approx(apart.min(), abs=1e-4)
    assert selection.notes["clustered"] == 20
    with pytest.raises(ValueError, match="asked for n = 21, found 20 of .*features.signatures.pool"):
        choose(with_activations, 21, features="activations")


def test_the_nearest_giver_gives_first_and_of_equals_the_first() -> None:
    place = np.array([0.0, 1.0, 2.0, 5.0, -2.0])

    def distances(cluster: int) -> NDArray[np.float64]:
        return np.abs(place - place[cluster])

    assert fill_nearest(np.array([1, 9, 9, 9, 9]), np.array([4, 8, 8, 9, 8]), distances) == {
        (0, 1): 1, (0, 2): 1, (0, 4): 1,
    }  # fmt: skip
    assert fill_nearest(np.array([0, 0, 4, 9, 0]), np.array([2, 2, 2, 2, 2]), distances) == {
        (0, 2): 2, (1, 3): 2, (4, 3): 2,
    }  # fmt: skip
    assert fill_nearest(np.array([3, 3]), np.array([3, 1]), distances) == {}


def write_features(folder: Path, rows: list[dict[str, Any]], points: NDArray[Any], shards: int = 2) -> Path:
    """A sample_features artifact with these embeddings and no signatures; row i goes to shard i % shards."""
    for number in range(shards):
        part = pa.Table.from_pylist(rows[number::shards], SAMPLES)
        write_table(folder / f"{number:016x}.parquet", part.select(["sample_id", "split", "domain", "n_tokens"]))
        np.save(folder / f"{number:016x}.npy", points[number::shards].astype(np.float16))
    names = [f"{number:016x}" for number in range(shards)]
    about = {"fingerprint": FINGERPRINT, "dimension": points.shape[1], "shards": names, "signatures": None}
    write_json(folder / "manifest.json", about)
    return folder


def test_a_set_on_disk(tmp_path: Path, choose: Callable[..., Path]) -> None:
    """The whole path with stored embeddings: two domains that lie apart, one sample of each cluster."""
    rows = [sample(i, 20 + i, domain="prose" if i < 12 else "code") for i in range(20)]
    rows += [sample(100 + i, 30, split="tuning") for i in range(4)]
    samples = write_samples(tmp_path / "samples", rows, shards=3)
    features = write_features(tmp_path / "features", rows, np.concatenate([groups([12, 8]), groups([2, 2])]))
    domains = Sources(samples, features).pool().domains
    out = choose(samples, features, strategy="embedding_cluster", n=2, domains=["prose", "code"])
    assert [row["domain"] for row in rows_of(out)] == ["prose", "code"]
    assert json.loads((out / "manifest.json").read_text())["notes"]["clusters"]["size"] == [12, 8]
    code = Sources(samples, features).pool().subset(np.flatnonzero(np.array(domains) == "code"))
    assert select(code, 2, generator(0, "")).notes["clustered"] == 8
