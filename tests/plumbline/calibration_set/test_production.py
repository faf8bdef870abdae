"""From a folder of production texts to a calibration set that resembles them, each stage as the graph builds it."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.artifact import read_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.calibration_choice.build import build_calibration_choice
from plumbline.calibration_set.build import build_calibration_set
from plumbline.calibration_set.pool import Sources
from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams
from plumbline.sample_features.build import build_sample_features
from plumbline.sample_features.params import FeatureParams
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.reader import read_samples
from tests.helpers.calibration_pool import rows_of

MODULES = ("argparse", "ast", "bdb", "calendar", "cmd", "configparser", "csv", "dataclasses", "datetime", "difflib")
TRAFFIC = ("doctest", "enum", "fileinput", "fractions")
N = 16


def snippets(module: str, size: int, count: int) -> list[str]:
    """The first pieces of `size` characters of a module's source."""
    text = inspect.getsource(import_module(module))
    return [text[start : start + size] for start in range(0, count * size, size)]


def prose(seed: int) -> list[str]:
    """Sentences about nothing, in words of the help texts of this Python."""
    words = sorted({w for name in MODULES for w in (inspect.getdoc(import_module(name)) or "").split() if w.isalpha()})
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, 90)) + "." for _ in range(45)]


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


@pytest.fixture(scope="module")
def choose(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Documents are prose and long code; production asks short questions about code. choose(strategy=...) -> set."""
    root = tmp_path_factory.mktemp("production")
    write(root / "docs/prose/a.jsonl", prose(0))
    write(root / "docs/code/long.jsonl", [s for m in MODULES for s in snippets(m, 800, 5)])
    short = [s for m in MODULES[:3] for s in snippets(m, 200, 12)]
    write(root / "docs/code/short.jsonl", short)
    write(root / "traffic/code/log.jsonl", [*(s for m in TRAFFIC for s in snippets(m, 230, 15)), *short[:5]])
    corpus = {
        "sources": {"docs": {"kind": "directory", "path": "docs"}},
        "production": {"kind": "directory", "path": "traffic"},
    }
    base = BaseCheckpoint.of(ModelParams())
    paths = {name: root / name for name in ("raw_corpus", "tokenized_samples", "sample_features")}
    for path in paths.values():
        path.mkdir()
    build_raw_corpus(CorpusParams.model_validate(corpus), root, paths["raw_corpus"])
    tokenize = TokenizeParams.model_validate({"max_length": 256, "workers": 1})
    build_tokenized_samples(tokenize, base, paths["raw_corpus"], paths["tokenized_samples"])
    features = FeatureParams.model_validate({"max_tokens": 64, "signatures": None})
    build_sample_features(features, base, paths["tokenized_samples"], paths["sample_features"])
    sources = Sources(paths["tokenized_samples"], paths["sample_features"])

    def make(name: str, **params: Any) -> Path:
        choice, out = root / "choices" / name, root / "sets" / name
        choice.mkdir(parents=True)
        out.mkdir(parents=True)
        build_calibration_choice(name, {"n": N, **params}, choice)
        build_calibration_set(choice, sources, out)
        return out

    return make


def test_a_matched_set_resembles_production_and_holds_none_of_it(choose: Any) -> None:
    matched, random = choose("matched", strategy="domain_matched"), choose("random", strategy="random")
    samples = matched.parent.parent / "tokenized_samples"
    by_split = read_json(samples / "accounting.json")["by_split"]
    production = read_samples(samples, ["production"])
    assert by_split["production"]["samples"] == production.num_rows >= 60
    duplicates = read_json(samples.parent / "raw_corpus" / "manifest.json")["totals"]["rejected"]
    assert duplicates == {"duplicate": 5}, "what docs and traffic share is production's"
    log_lengths = np.log(production["n_tokens"].to_numpy())
    found = {}
    for path in (matched, random):
        rows = rows_of(path)
        assert len(rows) == N
        assert not {row["sample_id"] for row in rows} & set(production["sample_id"].to_pylist())
        assert not {doc for row in rows for doc in row["doc_ids"]} & set(production["doc_id"].to_pylist())
        code = Counter(row["domain"] for row in rows)["code"] / N
        lengths = np.log([row["n_tokens"] for row in rows])
        found[path.name] = (code, abs(np.median(lengths) - np.median(log_lengths)))
    assert found["matched"][0] >= 0.9 > found["random"][0] + 0.2
    assert found["matched"][1] < 0.15 < found["random"][1]
    notes = read_json(matched / "manifest.json")["notes"]
    assert notes["reference"] == "production" and notes["reference_samples"] == production.num_rows
    distance = notes["distance"]
    assert set(distance) == {"all", "length", "tokens", "embedding"}
    assert [part["percentile"] for part in distance.values()] == [0] * 4, "closer than any random draw"
    assert distance["all"]["value"] < 0.5 * distance["all"]["random_median"]


def test_coverage_and_mixture_look_at_production_too(choose: Any) -> None:
    covered, random = choose("covered", strategy="token_coverage"), choose("mixed", strategy="mixture")
    notes = read_json(covered / "manifest.json")["notes"]
    assert notes["reference"] == "production" and notes["mass"] > notes["random_draws"]["mass"]
    assert {row["domain"] for row in rows_of(random)} == {"code"}
