from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.artifact import sha256_json, write_json
from plumbline.calibration_set.strategies.base import generator
from tests.helpers.calibration_pool import rows_of
from tests.helpers.tokenized_samples import FINGERPRINT, sample, write_samples

Choose = Callable[..., Path]


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rows = [sample(i, 20 + 7 * i, domain="prose" if i % 3 else "code") for i in range(30)]
    rows += [sample(100 + i, 30 + 5 * i, split="tuning") for i in range(8)]
    rows += [sample(200 + i, 30 + 5 * i, split="report") for i in range(8)]
    return write_samples(tmp_path / "samples", rows, shards=3)


def test_random_takes_the_first_of_a_seeded_permutation_of_the_sorted_pool(samples: Path, choose: Choose) -> None:
    found = [row["sample_id"] for row in rows_of(choose(samples, strategy="random", n=10, seed=3))]
    ids = sorted(sample(i, 20 + 7 * i)["sample_id"] for i in range(30))
    assert found == [ids[i] for i in generator(3, "random").permutation(30)[:10]]


def test_the_generator_is_fixed_for_good() -> None:
    """A change of these numbers would change every set that was ever made."""
    assert generator(0, "random").integers(0, 1000, 5).tolist() == EXPECTED
    assert generator(1, "random").integers(0, 1000, 5).tolist() != EXPECTED
    assert generator(0, "length_stratified").integers(0, 1000, 5).tolist() != EXPECTED


EXPECTED = [987, 793, 899, 122, 531]


def test_a_larger_random_set_begins_with_the_smaller_one(samples: Path, choose: Choose) -> None:
    small, large = (rows_of(choose(samples, strategy="random", n=n, seed=5)) for n in (5, 20))
    assert [row["sample_id"] for row in small] == [row["sample_id"] for row in large[:5]]


@pytest.mark.parametrize("strategy", ["random", "length_stratified"])
def test_only_the_pool_is_chosen_from_and_the_bytes_depend_on_nothing_else(
    samples: Path, choose: Choose, tmp_path: Path, strategy: str
) -> None:
    out = choose(samples, strategy=strategy, n=30)  # all there is
    assert {doc for row in rows_of(out) for doc in row["doc_ids"]} == {f"doc-pool-{i}" for i in range(30)}
    rows = pa.concat_tables(pq.read_table(p) for p in sorted((samples / "shards").iterdir())).to_pylist()
    other = write_samples(tmp_path / "other", rows[::-1], shards=2)
    for n in (7, 30):
        first, second = (choose(where, strategy=strategy, n=n) for where in (samples, other))
        for name in ("samples.parquet", "manifest.json", "representativeness.json"):
            assert (first / name).read_bytes() == (second / name).read_bytes()


def test_manifest_counts_add_up_and_the_digest_is_over_ids_and_fingerprint(samples: Path, choose: Choose) -> None:
    out = choose(samples, strategy="length_stratified", n=8, domains=["code"], buckets=[32, 64])
    rows, manifest = rows_of(out), json.loads((out / "manifest.json").read_text())
    assert [row["position"] for row in rows] == list(range(8))
    assert {row["domain"] for row in rows} == {"code"}
    assert manifest["digest"] == sha256_json([[row["sample_id"] for row in rows], FINGERPRINT])
    assert manifest["fingerprint"] == FINGERPRINT
    assert manifest["fingerprint_parts"] == {"max_length": 512}
    assert manifest["tokens"] == sum(row["n_tokens"] for row in rows)
    assert manifest["samples"] == manifest["documents"] == 8
    assert manifest["domains"] == {"code": {"samples": 8, "tokens": manifest["tokens"]}}
    counts = manifest["counts"]
    assert counts["pool_samples"] == 30 == counts["filtered_by_domain"] + counts["not_chosen"] + counts["selected"]
    assert (counts["filtered_by_domain"], counts["selected"], counts["missing"]) == (20, 8, 0)
    windowed = [row for row in rows if row["parents"]]
    whole = {sample(i, 20 + 7 * i)["sample_id"]: 20 + 7 * i for i in range(30)}
    assert counts["cut_or_joined"] == len(windowed) > 0
    assert counts["tokens_left_out"] == sum(whole[row["parents"][0]] - 64 for row in windowed)
    assert all(row["n_tokens"] == 64 and row["reason"]["of_tokens"] == whole[row["parents"][0]] for row in windowed)
    assert manifest["choice"]["buckets"] == [32, 64]


@pytest.mark.parametrize("strategy", ["random", "length_stratified"])
def test_a_pool_smaller_than_n_is_an_error_unless_allowed(samples: Path, choose: Choose, strategy: str) -> None:
    with pytest.raises(ValueError, match=r"n = 11 samples, found 10 .*30 samples, 10 of them in domains code.*lower n"):
        choose(samples, strategy=strategy, n=11, domains=["code"])
    out = choose(samples, strategy=strategy, n=11, domains=["code"], allow_fewer=True)
    assert len(rows_of(out)) == 10
    assert json.loads((out / "manifest.json").read_text())["counts"]["missing"] == 1
    assert len(rows_of(choose(samples, strategy=strategy, n=1))) == 1


def test_a_pool_without_samples_is_an_error_even_where_fewer_are_allowed(tmp_path: Path, choose: Choose) -> None:
    only_report = write_samples(tmp_path / "report", [sample(0, 30, split="report")])
    with pytest.raises(ValueError, match="found 0"):
        choose(only_report, strategy="random", n=1, allow_fewer=True)


def test_an_unknown_domain_is_named_with_the_closest_match(samples: Path, choose: Choose) -> None:
    with pytest.raises(ValueError, match="no domain `codes`; did you mean `code`.*code, prose"):
        choose(samples, strategy="random", n=1, domains=["codes"])


def test_features_of_another_tokenization_are_refused(samples: Path, choose: Choose, tmp_path: Path) -> None:
    features = tmp_path / "features"
    features.mkdir()
    write_json(features / "manifest.json", {"fingerprint": "e" * 64})
    with pytest.raises(ValueError, match="ffffffffffff.*eeeeeeeeeeee.*run sample_features again"):
        choose(samples, features, strategy="random", n=1)


def test_an_altered_set_does_not_open(samples: Path, choose: Choose) -> None:
    out = choose(samples, strategy="random", n=4)
    table = pq.read_table(out / "samples.parquet")
    pq.write_table(table.take([1, 0, 2, 3]), out / "samples.parquet")
    with pytest.raises(ValueError, match="altered"):
        rows_of(out)


def test_opens_as_torch_dataset_and_as_datasets_dataset(samples: Path, choose: Choose) -> None:
    import torch

    from plumbline.calibration_set import CalibrationDataset, load_calibration_set

    out = choose(samples, strategy="random", n=6)
    rows = rows_of(out)
    ours, theirs = CalibrationDataset(out), load_calibration_set(out)
    assert isinstance(ours, torch.utils.data.Dataset)
    assert len(ours) == len(theirs) == 6
    for i, row in enumerate(rows):
        assert ours[i]["input_ids"].dtype == torch.int64
        assert ours[i]["input_ids"].tolist() == theirs[i]["input_ids"] == row["input_ids"]
        assert ours[i]["attention_mask"].tolist() == theirs[i]["attention_mask"] == [1] * row["n_tokens"]
    assert ours[-1]["input_ids"].tolist() == rows[-1]["input_ids"]
    assert [len(batch["input_ids"]) for batch in torch.utils.data.DataLoader(ours, batch_size=None)] == [
        row["n_tokens"] for row in rows
    ]
    with pytest.raises(IndexError, match="has 6 samples"):
        ours[6]
    assert sum(1 for _ in ours) == 6  # iteration ends where IndexError says so
    assert np.array_equal(theirs["sample_id"], [row["sample_id"] for row in rows])
