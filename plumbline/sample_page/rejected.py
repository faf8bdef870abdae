"""What did not become a sample: rejected rows, files held back, refused chats, and what tokenization lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from plumbline.artifact import read_json
from plumbline.calibration_report.page import environment
from plumbline.raw_corpus.quarantine import quarantine
from plumbline.raw_corpus.shards import rejected_path
from plumbline.raw_corpus.source_file import REASONS
from plumbline.sample_page.page import visible
from plumbline.tokenized_samples.tokenize import refused_path
from plumbline.tokenized_samples.windows import LOST

MOST_ROWS = 5000
"""Rejected rows on the page; the counts are of all."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that is not in the corpus, or a chat that gave no tokens."""

    file: str
    row: int | None
    """None: the whole file."""
    reason: str
    detail: str
    """What was found; empty where texts are left out."""


@dataclass(frozen=True)
class Rejections:
    """All that was rejected on the way from the sources to the samples."""

    documents: int
    """Documents that were accepted."""
    samples: int | None
    """Samples that came of them; None: nothing was tokenized yet."""
    counts: dict[str, int]
    """Rows by reason."""
    held_back: list[dict[str, Any]]
    """Files that are held back whole: file, rows, row, why."""
    lost: dict[str, dict[str, int]]
    """Losses of tokenization by reason: documents, samples, tokens."""
    rows: list[RejectedRow]
    """At most `MOST_ROWS`."""

    @property
    def total(self) -> int:
        """All rejected rows."""
        return sum(self.counts.values())


def read_rejections(corpus: Path, samples: Path | None, texts: bool) -> Rejections:
    """All that the corpus and its tokenization rejected.

    Args:
        corpus: the folder raw_corpus.
        samples: the folder tokenized_samples; None: there is none yet.
        texts: whether details, which quote the rows, are read.

    Raises:
        FileNotFoundError: there is no corpus.
    """
    if not (corpus / "manifest.json").is_file():
        raise FileNotFoundError(f"{corpus} holds no corpus yet; run `plumbline run --only raw_corpus`")
    manifest = read_json(corpus / "manifest.json")
    counts: dict[str, int] = {}
    rows: list[RejectedRow] = []
    for entry in manifest["shards"]:
        for reason, count in entry["rejected"].items():
            counts[reason] = counts.get(reason, 0) + count
        rows += _rows(rejected_path(corpus, entry["shard"]), "file", texts, MOST_ROWS - len(rows))
    accounting = None
    if samples is not None:
        accounting = read_json(samples / "accounting.json")
        for entry in accounting["shards"]:
            rows += _rows(refused_path(samples, entry["shard"]), "source", texts, MOST_ROWS - len(rows))
    held_back = quarantine(corpus)
    if not texts:
        held_back = [{**entry, "why": entry["why"].split(":")[0]} for entry in held_back]
    return Rejections(
        documents=manifest["totals"]["documents"],
        samples=None if accounting is None else accounting["samples_out"],
        counts=dict(sorted(counts.items())),
        held_back=held_back,
        lost={} if accounting is None else accounting["lost"],
        rows=rows,
    )


def _rows(path: Path, file: str, texts: bool, most: int) -> list[RejectedRow]:
    if most <= 0 or not path.is_file():
        return []
    with pq.ParquetFile(path) as table:
        batch = next(table.iter_batches(batch_size=most), None)
    rows = [] if batch is None else batch.to_pylist()
    return [RejectedRow(row[file], row["row"], row["reason"], row["detail"] if texts else "") for row in rows]


def render_rejections(rejections: Rejections) -> str:
    """The page as HTML, with all data escaped."""
    jinja = environment(Path(__file__).parent)
    jinja.filters["visible"] = visible
    return jinja.get_template("rejected.html.j2").render(rejections=rejections, reasons=REASONS, losses=LOST)
