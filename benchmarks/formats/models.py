"""The models in bfloat16, few calibration samples, and few held-out documents: a matrix has some forty cells."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.experts.grow import grown
from benchmarks.experts.texts import windows
from benchmarks.peers.articles import NAME as REAL
from benchmarks.peers.articles import STORIES, Articles, subject_of_articles
from benchmarks.peers.subjects import BUNDLED_NAME, Subject, held_out_of, recast, subject, write_set
from plumbline.base_model.folder import BUNDLED
from plumbline.calibration_set.reader import read_calibration_set
from plumbline.evaluation.held_out import HeldOut

MIXTURE = "mixture of 8 experts"
NAMES = (BUNDLED_NAME, STORIES, MIXTURE, REAL)
POOL, LENGTH = 32, 512
"""Samples that are drawn for the bundled model, and their tokens."""
DTYPE = "bfloat16"
"""Deployed models have it, and transformers decompresses FP4 and MX weights to it."""


def subjects(arguments: Namespace, work: Path) -> Iterator[Subject]:
    """The models that are named on the command line, or all whose folders are."""
    wanted = arguments.models or NAMES
    if BUNDLED_NAME in wanted:
        about = subject(BUNDLED_NAME, POOL, LENGTH, work, DTYPE)
        held_out = beginnings(about.held_out, arguments.documents, arguments.tokens)
        yield replace(about, samples=first_samples(about.samples, arguments.samples), held_out=held_out)
    if STORIES in wanted and arguments.stories:
        settings = Articles(arguments.stories, arguments.stories_texts, 32, 128, 24, 128, STORIES, 32)
        yield subject_of_articles(settings, work, DTYPE)
    if MIXTURE in wanted:
        yield mixture(arguments, work)
    if REAL in wanted and arguments.model:
        settings = Articles(arguments.model, arguments.texts, 8, 256, 32, 96)
        yield subject_of_articles(settings, work, DTYPE)


def beginnings(held_out: HeldOut, documents: int, tokens: int) -> HeldOut:
    """The first tokens of the first documents of every domain: tokens of one document are similar."""
    seen: dict[str, set[str]] = {}
    rows = []
    for row, (domain, document) in enumerate(zip(held_out.domains, held_out.doc_ids, strict=True)):
        known = seen.setdefault(domain, set())
        if document not in known and len(known) < documents:
            known.add(document)
            rows.append(row)
    return held_out_of(
        [held_out.domains[row] for row in rows],
        [held_out.doc_ids[row] for row in rows],
        [held_out.tokens[row][:tokens] for row in rows],
    )


def first_samples(folder: Path, samples: int) -> Path:
    """A calibration set of the first samples of another."""
    few = folder.with_name(f"{folder.name}-first-{samples}")
    if not (few / "manifest.json").is_file():
        rows = read_calibration_set(folder, ["input_ids"])["input_ids"].to_pylist()[:samples]
        few.mkdir()
        write_set(few, BUNDLED_NAME, [np.array(ids, np.int32) for ids in rows])
    return few


def mixture(arguments: Namespace, work: Path) -> Subject:
    """The mixture that benchmarks/experts grows from the bundled model, with shorter training."""
    folder = work / "mixture"
    pool, report = windows("pool", arguments.pool, folder), windows("report", 32, folder, per_document=1)
    trained = grown(BUNDLED, folder / f"model-{arguments.steps}", pool.ids, arguments.steps)
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    rows = np.random.default_rng(0).permutation(len(pool.ids))[: 2 * arguments.samples]
    write_set(samples, MIXTURE, [pool.ids[row].astype(np.int32) for row in rows])
    held_out = held_out_of(report.domains, report.documents, list(report.ids))
    return Subject(MIXTURE, recast(trained, folder / f"model-{arguments.steps}-{DTYPE}", DTYPE), samples, held_out)
