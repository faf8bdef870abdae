"""Cost of many documents, and of 5 % more: `python -m benchmarks.incremental_pipeline --documents 200000`.

A corpus of JSON lines is ingested, tokenized, embedded; then 5 % more documents arrive in the inbox. Three builds are
measured: the first, the increment (intake, ingest, tokenization, embedding, as in the `ingest` job) and all of it anew,
which must give the increment's bytes. Documents are synthetic: words by Zipf's law, lognormal lengths, 1,000 per file.
Embedding takes most of the time: 0.08 CPU seconds for a document of 150 words on a processor with AVX2 alone.
`--embedder none` leaves it out, and `--once` the third build.

Statistics are not included: the pipeline collects those of a changed set anew, and `python -m benchmarks.incremental`
measures their update.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peak_memory import forget_peak, peak_bytes
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.file_hashes import FileHashes
from plumbline.raw_corpus.intake import INTAKE, Intake, read_intake, take_in, write_intake
from plumbline.raw_corpus.params import CorpusParams
from plumbline.raw_corpus.stores import store_of
from plumbline.sample_features.build import build_sample_features
from plumbline.sample_features.params import FeatureParams
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.versioning.digest import dvc_digest

BASE = BaseCheckpoint.of(ModelParams())
AIM = 0.15
ADDED = 0.05
FILE = 1000
STAGES = ("raw_corpus", "tokenized_samples", "sample_features")


def write_documents(folder: Path, first: int, count: int, words: int) -> None:
    """Write `count` documents of about `words` words as JSON lines, FILE per file."""
    letters = np.array(list("etaoinshrdlu"))
    vocabulary = ["".join(w) for w in np.random.default_rng(0).choice(letters, (20_000, 5))]
    zipf = np.cumsum(1 / np.arange(1, len(vocabulary) + 1))
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(first, first + count, FILE):
        rng = np.random.default_rng(start)
        lines = []
        for number in range(start, min(start + FILE, first + count)):
            length = int(np.clip(rng.lognormal(np.log(words), 0.5), min(20, words), 20 * words))
            rows = np.searchsorted(zipf / zipf[-1], rng.random(length))
            text = f"{number} " + " ".join(vocabulary[row] for row in rows)
            lines.append(json.dumps({"text": text}))
        (folder / f"{start:08d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Cost:
    """Of a stage: seconds on the clock, and bytes of peak memory and of its output."""

    seconds: float
    memory: int
    disk: int


def build(root: Path, name: str, previous: str | None, embed: bool) -> dict[str, Cost]:
    """The cost of each stage that makes `root/name`, from `root/previous` where there is one."""
    params = CorpusParams.model_validate({"sources": {"docs": {"kind": "directory", "path": "docs"}}})
    costs: dict[str, Cost] = {}

    def timed(stage: str, work: Callable[[Path, Path | None], Any]) -> None:
        out = root / name / stage
        out.mkdir(parents=True)
        forget_peak()
        started = time.perf_counter()
        work(out, root / previous / stage if previous else None)
        seconds = time.perf_counter() - started
        disk = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        costs[stage] = Cost(seconds, peak_bytes(), disk)

    def ingest(out: Path, before: Path | None) -> None:
        store = store_of(params.inbox, root, params.max_file_bytes)
        intake = read_intake(root / INTAKE) if before else Intake()
        files = store.look()
        known_hashes = {file: entry.sha256 for file, entry in intake.files.items()}
        after, _, _ = take_in(intake, store, files, {file: known_hashes.get(file) for file in files})
        write_intake(root / INTAKE, after)
        hashes = FileHashes(None if name == "anew" else root / ".plumbline" / "file_hashes.json")
        build_raw_corpus(params, root, out, before, hashes, after)

    folder = root / name
    timed("raw_corpus", ingest)
    timed(
        "tokenized_samples",
        lambda out, before: build_tokenized_samples(TokenizeParams(), BASE, folder / "raw_corpus", out, before),
    )
    if embed:
        features = FeatureParams(signatures=None, matmul_precision="medium")
        timed(
            "sample_features",
            lambda out, before: build_sample_features(features, BASE, folder / "tokenized_samples", out, before),
        )
    return costs


def measure(root: Path, documents: int, words: int, embed: bool, once: bool = False) -> dict[str, dict[str, Cost]]:
    """Cost per stage of each build: `first`, `increment`, and `anew` unless `once`.

    Raises:
        AssertionError: the increment and everything anew give different bytes.
    """
    write_documents(root / "docs", 0, documents, words)
    (root / "inbox").mkdir()
    costs = {"first": build(root, "first", None, embed)}
    write_documents(root / "inbox", documents, round(ADDED * documents), words)
    costs["increment"] = build(root, "increment", "first", embed)
    if not once:
        costs["anew"] = build(root, "anew", None, embed)
        for stage in costs["anew"]:
            assert dvc_digest(root / "increment" / stage) == dvc_digest(root / "anew" / stage), stage
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--words", type=int, default=150, help="median length of a document")
    parser.add_argument("--embedder", choices=("bundled", "none"), default="bundled")
    parser.add_argument("--once", action="store_true", help="no build of everything anew")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="incremental-pipeline."))
    try:
        embed = arguments.embedder == "bundled"
        costs = measure(root, arguments.documents, arguments.words, embed, arguments.once)
    finally:
        shutil.rmtree(root)
    print(f"{arguments.documents:,} documents and {ADDED:.0%} more, {arguments.words} words each")
    print(f"{'':<20}{'build':<12}{'seconds':>10}{'peak, MiB':>12}{'output, MiB':>14}")
    for stage in costs["first"]:
        for name, stages in costs.items():
            cost = stages[stage]
            print(f"{stage:<20}{name:<12}{cost.seconds:>10.2f}{cost.memory / 2**20:>12.0f}{cost.disk / 2**20:>14.1f}")
    together = {name: sum(cost.seconds for cost in stages.values()) for name, stages in costs.items()}
    whole = together.get("anew", together["first"])
    print(f"together: {', '.join(f'{name} {seconds:.2f} s' for name, seconds in together.items())}")
    print(f"the increment takes {together['increment'] / whole:.3f} of the whole; aim: at most {AIM}")
    if "anew" in costs:
        print("both give the same bytes")


if __name__ == "__main__":
    main()
