"""Drift is what has left the range of random draws since the champion's set was chosen, or the draws themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plumbline.artifact import write_json, write_table
from plumbline.calibration_set.pool import Sources
from plumbline.calibration_set.reader import SCHEMA, read_calibration_set, set_digest
from plumbline.calibration_set.representativeness.compare import representativeness
from plumbline.production_drift.measure import judge, measure_drift, selection_of
from plumbline.production_drift.params import DriftParams
from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.reader import fingerprint_of, read_samples
from tests.helpers.checkpoint import checkpoint
from tests.helpers.paths import BUNDLED

WORDS = ["plumb", "line", "falls", "string", "gravity", "weight", "wall", "level", "true", "mason", "knot", "reel"]
CODE = ["def", "return", "self", "None", "import", "lambda", "yield", "assert", "class", "while", "raise", "except"]


def block(p: float, **ratios: float | None) -> dict[str, Any]:
    null = {"median": 0.2, "p05": 0.1, "p95": 0.3}
    metrics = {
        name: {"value": 0.5, "ratio": ratio, "null": null, "label": f"the {name}", "sentence": f"{name} is off."}
        for name, ratio in ratios.items()
    }
    sizes = {"samples": 64, "reference_samples": 64}
    return {"references": {"production": {"flagged": list(metrics), "metrics": metrics, "p_value": p, **sizes}}}


def draws(median: float, spread: float, reference_samples: int = 64, samples: int = 64) -> dict[str, Any]:
    """A block in which nothing is flagged: random draws have their median so, p05 and p95 so far from it."""
    null = {"median": median, "p05": median - spread, "p95": median + spread}
    metrics = {"tokens": {"value": median, "ratio": 1.0, "null": null, "label": "tokens", "sentence": "."}}
    return {
        "flagged": [],
        "metrics": metrics,
        "p_value": 0.5,
        "samples": samples,
        "reference_samples": reference_samples,
    }


def test_what_is_new_or_has_grown_counts_and_p_must_be_small() -> None:
    params = DriftParams(level=0.01, growth=1.5)
    found = judge(block(0.0025, lengths=3.0), block(0.5), params)
    assert (
        found["drifted"] and list(found["metrics"]) == ["lengths"] and "the lengths (p = 0.0025)" in found["sentence"]
    )
    assert judge(block(0.0025, lengths=3.0), {"references": {}}, params)["drifted"]
    as_then = judge(block(0.0025, lengths=3.0), block(0.0025, lengths=2.9), params)
    assert not as_then["drifted"] and as_then["metrics"] == {} and "as close" in as_then["sentence"]
    grown = judge(block(0.0025, lengths=3.0, tokens=9.0), block(0.0025, lengths=2.0, tokens=9.0), params)
    assert grown["drifted"] and list(grown["metrics"]) == ["lengths"]
    assert grown["metrics"]["lengths"]["then"] == {"value": 0.5, "ratio": 2.0}
    unsure = judge(block(0.02, lengths=3.0), block(0.5), params)
    assert not unsure["drifted"] and "not beyond drift.level = 0.01" in unsure["sentence"]
    assert not judge(block(0.0025, lengths=None), block(0.0025, lengths=None), params)["drifted"]


def test_production_that_leaves_the_pool_is_drift_although_random_draws_are_as_far() -> None:
    def judged(now: dict[str, Any], then: dict[str, Any], **references: Any) -> dict[str, Any]:
        return judge({"references": {"production": now, **references}}, {"references": then}, DriftParams(growth=1.5))

    then = {"production": draws(0.2, 0.05)}
    found = judged(draws(0.6, 0.05), then)
    assert found["drifted"] and found["metrics"]["tokens"]["pool"]
    assert "from all texts to choose from in tokens" in found["sentence"] and "as close" not in found["sentence"]
    # p05 and p95 are taken sqrt(1 + 64 / 64) times as far from the median: 0.2 + 0.0707 < 0.35 - 0.0707 = 0.2793
    assert judged(draws(0.35, 0.05), then)["drifted"]
    assert not judged(draws(0.34, 0.05), then)["drifted"]
    assert not judged(draws(0.29, 0.001), {"production": draws(0.2, 0.001)})["drifted"]  # grown by less than 1.5
    assert not judged(draws(0.35, 0.05, samples=256), then)["drifted"]
    assert not judged(draws(0.6, 0.05, 31), then)["drifted"]  # less than half of the production of then
    # no production then: the tuning split says how near a draw comes
    assert judged(draws(0.6, 0.05), {}, tuning=draws(0.2, 0.05))["drifted"]
    assert not judged(draws(0.2, 0.05), {}, tuning=draws(0.2, 0.05))["drifted"]
    assert not judged(draws(0.6, 0.05), {})["drifted"]


def made(root: Path, pool: tuple[list[str], ...]) -> dict[str, Path]:
    """A corpus, two days of production, of prose and of code, and a set of prose that was compared with the first."""
    kinds_of = {"docs": pool, "prose": (WORDS,), "code": (CODE,)}
    rng = np.random.default_rng(2)
    for folder, kinds in kinds_of.items():
        (root / folder).mkdir()
        for number in range(70):
            words = kinds[number % len(kinds)]
            (root / folder / f"{number}.txt").write_text(f"{number} " + " ".join(rng.choice(words, 20)))
    found = {}
    for day in ("prose", "code"):
        for name in ("corpus", "samples"):
            (root / f"{name}-{day}").mkdir()
        production = {"kind": "directory", "path": day, "domain": "docs"}
        docs = {"docs": {"kind": "directory", "path": "docs"}}
        params = CorpusParams.model_validate({"sources": docs, "production": production})
        build_raw_corpus(params, root, root / f"corpus-{day}")
        policy = TokenizeParams.model_validate({"max_length": 64, "workers": 1})
        build_tokenized_samples(policy, checkpoint(BUNDLED), root / f"corpus-{day}", root / f"samples-{day}")
        found[day] = root / f"samples-{day}"
    names = ["sample_id", "doc_id", "domain", "source", "n_tokens", "input_ids"]
    sources = Sources(found["prose"], None)
    decode = sources.load_tokenizer().decode
    samples = read_samples(found["prose"], ["pool"], names).to_pylist()
    rows = [row for row in samples if set(decode(row["input_ids"]).split()) & set(WORDS)][:12]
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    columns["doc_ids"] = [[row["doc_id"]] for row in rows]
    write_table(root / "set/samples.parquet", pa.table(columns, SCHEMA))
    fingerprint = fingerprint_of(found["prose"])
    digest = set_digest(columns["sample_id"], fingerprint)
    write_json(root / "set/manifest.json", {"fingerprint": fingerprint, "digest": digest})
    chosen = read_calibration_set(root / "set")
    selection = selection_of(chosen, sources.pool().table["sample_id"])
    then = representativeness(sources, sources.pool(), selection, chosen)
    write_json(root / "set/representativeness.json", then)
    return {**found, "set": root / "set"}


@pytest.mark.parametrize("pool", [(WORDS, CODE), (WORDS,)], ids=["the pool has it", "the pool has nothing like it"])
def test_production_of_another_kind_is_drift_and_more_of_the_same_is_not(
    tmp_path: Path, pool: tuple[list[str], ...]
) -> None:
    folders = made(tmp_path, pool)
    same = measure_drift(folders["set"], Sources(folders["prose"], None), DriftParams())
    assert not same["drifted"] and same["production_samples"] == 70 and same["metrics"] == {}
    other = measure_drift(folders["set"], Sources(folders["code"], None), DriftParams())
    assert other["drifted"] and "token_jsd" in other["metrics"]
    by_draws = [name for name, metric in other["metrics"].items() if not metric["pool"]]
    if CODE in pool:
        assert other["p_value"] <= 0.01 and "token_jsd" in by_draws
    else:  # every random draw is as far from it
        assert other["p_value"] > 0.01 and by_draws == []
        assert other["sentence"].endswith("add such texts to the corpus.")
    few = measure_drift(folders["set"], Sources(folders["code"], None), DriftParams(min_samples=1000))
    assert not few["drifted"] and "1000 are asked" in few["sentence"]


def test_a_set_whose_samples_left_the_corpus_is_still_compared() -> None:
    rows = pa.table({"sample_id": ["a", "b", "c"], "input_ids": pa.array([[1, 2], [3], [4]], pa.list_(pa.int32()))})
    found = selection_of(rows, pa.chunked_array([["c", "a"]]))
    assert found.indices.tolist() == [1, -1, 0] and {p: t.tolist() for p, t in found.written.items()} == {1: [3]}
