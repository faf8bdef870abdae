"""Drift is what has left the range of random draws since the champion's set was chosen, or has grown within it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from assets.artifact import write_json, write_table
from assets.calibration_set.pool import Sources
from assets.calibration_set.reader import SCHEMA, set_digest
from assets.production_drift.measure import judge, measure_drift, selection_of
from assets.production_drift.params import DriftParams
from assets.raw_corpus.ingest import build_raw_corpus
from assets.raw_corpus.params import CorpusParams
from assets.tokenized_samples.params import TokenizeParams
from assets.tokenized_samples.reader import fingerprint_of, read_samples
from assets.tokenized_samples.tokenize import build_tokenized_samples

MODEL = Path(__file__).resolve().parents[2] / "assets/base_model/llama-stdlib-6m"
WORDS = ["plumb", "line", "falls", "string", "gravity", "weight", "wall", "level", "true", "mason", "knot", "reel"]
CODE = ["def", "return", "self", "None", "import", "lambda", "yield", "assert", "class", "while", "raise", "except"]


def block(p: float, **ratios: float | None) -> dict[str, Any]:
    metrics = {
        name: {"value": 0.5, "ratio": ratio, "label": f"the {name}", "sentence": f"{name} is off."}
        for name, ratio in ratios.items()
    }
    return {"references": {"production": {"flagged": list(metrics), "metrics": metrics, "p_value": p}}}


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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A corpus of two kinds of text, and two days of production: as the corpus, and of one kind alone."""
    root = tmp_path_factory.mktemp("drift")
    rng = np.random.default_rng(2)
    for folder, kinds in {"docs": (WORDS, CODE), "as-ever": (WORDS, CODE), "other": (CODE,)}.items():
        (root / folder).mkdir()
        for number in range(70):
            words = kinds[number % len(kinds)]
            (root / folder / f"{number}.txt").write_text(f"{folder} {number} " + " ".join(rng.choice(words, 20)))
    found = {}
    for day in ("as-ever", "other"):
        for name in ("corpus", "samples"):
            (root / f"{name}-{day}").mkdir()
        production = {"kind": "directory", "path": day, "domain": "docs"}
        sources = {"docs": {"kind": "directory", "path": "docs"}}
        params = CorpusParams.model_validate({"sources": sources, "production": production})
        build_raw_corpus(params, root, root / f"corpus-{day}")
        policy = TokenizeParams.model_validate({"max_length": 64, "workers": 1})
        build_tokenized_samples(policy, MODEL, root / f"corpus-{day}", root / f"samples-{day}")
        found[day] = root / f"samples-{day}"
    pool = read_samples(
        found["as-ever"], ["pool"], ["sample_id", "doc_id", "domain", "source", "n_tokens", "input_ids"]
    )
    rows = pool.slice(0, 12).to_pylist()
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    columns["doc_ids"] = [[row["doc_id"]] for row in rows]
    write_table(root / "set/samples.parquet", pa.table(columns, SCHEMA))
    fingerprint = fingerprint_of(found["as-ever"])
    digest = set_digest(columns["sample_id"], fingerprint)
    write_json(root / "set/manifest.json", {"fingerprint": fingerprint, "digest": digest})
    write_json(root / "set/representativeness.json", {"references": {}})
    return {**found, "set": root / "set"}


def test_production_of_another_kind_is_drift_and_more_of_the_same_is_not(made: dict[str, Path]) -> None:
    params = DriftParams()
    same = measure_drift(made["set"], Sources(made["as-ever"], None), params)
    assert not same["drifted"] and same["production_samples"] == 70
    other = measure_drift(made["set"], Sources(made["other"], None), params)
    assert other["drifted"] and other["p_value"] <= 0.01 and other["metrics"]
    few = measure_drift(made["set"], Sources(made["other"], None), DriftParams(min_samples=1000))
    assert not few["drifted"] and "1000 are asked" in few["sentence"]


def test_a_set_whose_samples_left_the_corpus_is_still_compared(made: dict[str, Path]) -> None:
    rows = pa.table({"sample_id": ["a", "b", "c"], "input_ids": pa.array([[1, 2], [3], [4]], pa.list_(pa.int32()))})
    found = selection_of(rows, pa.chunked_array([["c", "a"]]))
    assert found.indices.tolist() == [1, -1, 0] and {p: t.tolist() for p, t in found.written.items()} == {1: [3]}
