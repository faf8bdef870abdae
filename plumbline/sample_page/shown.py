"""What one sees of a calibration set: every sample with its text, documents, reason and the ranges that it sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.calibration_report.extremes import in_order, read_extremes
from plumbline.calibration_set.reader import read_calibration_set, read_manifest
from plumbline.raw_corpus.document import Document
from plumbline.sample_page.documents import documents_of
from plumbline.sample_page.turns import Turn, turns_of


@dataclass(frozen=True)
class ShownDocument:
    """A document of a sample."""

    doc_id: str
    source: str
    """The file, as `source-name/relative/path`; of a document that is no longer in the corpus, the sample's."""
    row: int | None
    """0-based row of the file; None: the document is no longer in the corpus, or there is no corpus here."""


@dataclass(frozen=True)
class ShownSample:
    """A sample of a set."""

    position: int
    sample_id: str
    domain: str
    tokens: int
    documents: tuple[ShownDocument, ...]
    """None if the base model wrote the sample."""
    reason: str
    """Why the strategy picked it."""
    sites: tuple[str, ...]
    """The layer inputs whose largest magnitude it has."""
    turns: tuple[Turn, ...] | None
    """None: texts are left out."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(turn.text for turn in self.turns or ())

    @property
    def chat(self) -> bool:
        """Whether roles are known."""
        return any(turn.role for turn in self.turns or ())


@dataclass(frozen=True)
class ShownSet:
    """A calibration set."""

    manifest: Mapping[str, Any]
    samples: tuple[ShownSample, ...]
    layers: int
    """Layer inputs whose extremes are known; 0: none, see `notes`."""
    notes: tuple[str, ...]
    """What could not be shown, and why."""

    @property
    def name(self) -> str:
        """The choice's name."""
        return str(self.manifest["choice"]["name"])


def read_shown_set(
    calibration_set: Path, corpus: Path | None, tokenizer: Any | None, statistics: Path | None
) -> ShownSet:
    """A calibration set with what belongs to it.

    Args:
        corpus: raw_corpus, for rows and turns; None: there is none here.
        tokenizer: the one that the set was tokenized with; None: texts are left out.
        statistics: activation_stats of the set, for the extremes; None, or not there yet: left out, which a note says.

    Raises:
        FileNotFoundError: there is no such set.
        ValueError: its samples and manifest disagree.
    """
    rows = read_calibration_set(calibration_set).to_pylist()
    manifest = read_manifest(calibration_set)
    documents = {} if corpus is None else documents_of(corpus, rows)
    notes = []
    if absent := len({name for row in rows for name in row["doc_ids"]} - documents.keys()):
        why = "there is no corpus here" if corpus is None else "the corpus no longer holds them as they were"
        notes.append(f"Rows of {absent} documents are not shown: {why}.")
    sites, layers = _sites(calibration_set, statistics, notes)
    if tokenizer is None:
        notes.append("Texts are left out (`pages: {texts: false}` in params.yaml).")
    samples = [_shown(row, documents, sites, tokenizer) for row in rows]
    return ShownSet(manifest, tuple(samples), layers, tuple(notes))


def _sites(calibration_set: Path, statistics: Path | None, notes: list[str]) -> tuple[dict[str, list[str]], int]:
    """The layer inputs whose extreme each sample sets, and how many there are; a note says why there are none."""
    if statistics is None or not statistics.is_dir():
        notes.append("Which samples set a layer's extremes is not shown: the set has no activation statistics yet.")
        return {}, 0
    try:
        extremes = read_extremes(statistics, calibration_set)
    except ValueError as error:
        notes.append(f"Which samples set a layer's extremes is not shown: {error}.")
        return {}, 0
    by_sample: dict[str, list[str]] = {}
    for row in extremes:
        by_sample.setdefault(row["sample_id"], []).append(row["site"])
    return by_sample, len(extremes)


def _shown(
    row: Mapping[str, Any], documents: Mapping[str, Document], sites: Mapping[str, list[str]], tokenizer: Any | None
) -> ShownSample:
    present = [documents[name] for name in row["doc_ids"] if name in documents]
    about = tuple(
        ShownDocument(name, documents[name].source, documents[name].row)
        if name in documents
        else ShownDocument(name, row["source"], None)
        for name in row["doc_ids"]
    )
    complete = present if len(present) == len(row["doc_ids"]) else []
    turns = None if tokenizer is None else turns_of(tokenizer, row["input_ids"], complete, row["assistant_spans"])
    return ShownSample(
        position=row["position"],
        sample_id=row["sample_id"],
        domain=row["domain"],
        tokens=row["n_tokens"],
        documents=about,
        reason=in_words(json.loads(row["reason"])),
        sites=tuple(sorted(sites.get(row["sample_id"], ()), key=in_order)),
        turns=turns,
    )


def in_words(reason: Any) -> str:
    """A strategy's reason as text: {"cluster": 3, "distance": 0.2} -> "cluster 3, distance 0.2"."""
    if isinstance(reason, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {in_words(value)}".strip() for key, value in reason.items())
    if isinstance(reason, list):
        return " ".join(map(in_words, reason))
    return f"{reason:.4g}" if isinstance(reason, float) else str(reason)
