"""params.yaml for somebody's own model and texts, as `plumbline init --model --corpus` writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

LONGEST = 2048
"""Tokens of a sample, unless the model reads fewer at once."""
SIZES = (128, 64, 32, 16, 8)
"""Sizes of a calibration set; the largest is taken that leaves a choice."""
FEWEST_DOCUMENTS = 24
ENOUGH_DOCUMENTS = 2000
"""Counting stops here: more change nothing of what is written."""
SECTION = re.compile(r"^([a-z_]+):", re.MULTILINE)
SCHEMES = ("w4a16-gptq", "w8a8-minmax")


@dataclass(frozen=True)
class Own:
    """A model and a corpus that are somebody's own."""

    model: str
    """An absolute path, or a hub id."""
    revision: str | None
    corpus: Path
    """A folder or file, absolute."""
    documents: int
    """That the corpus has, at most ENOUGH_DOCUMENTS."""
    context: int | None
    """Most tokens that the model reads at once; None: unknown."""
    chat_template: str | None = None
    """A file in the workspace."""


def own_params(template: str, own: Own) -> str:
    """The text of params.yaml: that of the template, with the sections that depend on model and corpus replaced.

    Raises:
        ValueError: the corpus has too few documents.
    """
    if own.documents < FEWEST_DOCUMENTS:
        raise ValueError(
            f"{own.corpus}: found {own.documents} documents (files of .txt or .md, rows of .jsonl or .parquet), "
            f"expected at least {FEWEST_DOCUMENTS}: sets are chosen from some and judged on others; add texts, or cut "
            "long ones into a file or row each"
        )
    report = 0.1 if own.documents >= 1000 else 0.2
    pool = own.documents * (0.9 - report)
    n = next(size for size in SIZES if 2 * size <= pool)
    name = source_name(own.corpus)
    model = {"name": own.model, "revision": own.revision}
    model |= {"chat_template": own.chat_template} if own.chat_template else {}
    longest = LONGEST if own.context is None else min(LONGEST, own.context)
    sections = {
        "model": f"model: {flow(model)}\n",
        "corpus": (
            f"corpus:\n  sources:\n    {quoted(name)}: {flow({'kind': 'directory', 'path': str(own.corpus)})}\n"
            "  inbox: inbox                              # put .txt, .md, .jsonl, .jsonl.gz or .parquet files here\n"
            "  # production: {kind: directory, path: /data/traffic-sample}   # what the set should represent\n"
        ),
        "tokenize": (
            f"tokenize:\n  max_length: {longest}\n"
            "  long_documents: window                    # window | truncate | drop\n"
            f"  splits: {{tuning: 0.1, report: {report}}}\n"
        ),
        "calibrations": (
            "calibrations:\n"
            f"  random-{n}:     {{strategy: random, n: {n}, seed: 0}}\n"
            f"  stratified-{n}: {{strategy: length_stratified, n: {n}, seed: 0, quotas: proportional}}\n"
            f"  clusters-{n}:   {{strategy: embedding_cluster, n: {n}, seed: 0}}\n"
        ),
        "grid": (
            f"grid:\n  calibrations: [random-{n}, stratified-{n}, clusters-{n}]\n  schemes: [{', '.join(SCHEMES)}]\n"
        ),
    }
    return without_domains(with_sections(template, sections))


def without_domains(text: str) -> str:
    """A params.yaml without the studies whose rules name domains: those of the bundled corpus."""
    for name, study in (yaml.safe_load(text).get("studies") or {}).items():
        if any("domains" in rule for rule in study["rules"].values()):
            text = re.sub(rf"^  {name}:.*\n(?:    .*\n|\n(?=    ))*", "", text, flags=re.MULTILINE)
    return text.rstrip() + "\n"


def with_sections(text: str, sections: Mapping[str, str]) -> str:
    """A YAML text with whole top-level sections replaced; comments above a section stay.

    Raises:
        KeyError: the text lacks a section.
    """
    starts = {match[1]: match.start() for match in SECTION.finditer(text)}
    for name, body in sections.items():
        start = starts[name]
        end = re.compile(r"^(?=[a-z_#]|\n|\Z)", re.MULTILINE).search(text, text.index("\n", start) + 1)
        assert end is not None
        text = text[:start] + body + text[end.start() :]
        starts = {match[1]: match.start() for match in SECTION.finditer(text)}
    return text


def flow(mapping: Mapping[str, str | None]) -> str:
    """A mapping of texts in one line of YAML."""
    return "{" + ", ".join(f"{key}: {quoted(value)}" for key, value in mapping.items()) + "}"


def quoted(value: str | None) -> str:
    """A text as YAML, in quotes unless it is plainly one word or path."""
    if value is None:
        return "null"
    plain = re.fullmatch(r"[A-Za-z/][\w./-]*", value) and value.lower() not in ("null", "true", "false", "yes", "no")
    return value if plain else json.dumps(value, ensure_ascii=False)


def source_name(corpus: Path) -> str:
    """A name for the corpus among the sources, from that of its folder."""
    from plumbline.params import RESERVED_SOURCES

    name = re.sub(r"[^\w.-]+", "-", corpus.stem if corpus.is_file() else corpus.name).strip(".-_")[:60]
    return name if name and name not in RESERVED_SOURCES else "texts"


def count_documents(corpus: Path) -> int:
    """Different documents below a folder, or in a file, that can be read; counting stops at ENOUGH_DOCUMENTS."""
    ids: set[str] = set()
    for name in _documents(corpus):
        ids.add(name)
        if len(ids) == ENOUGH_DOCUMENTS:
            break
    return len(ids)


def _documents(corpus: Path) -> Iterator[str]:
    """The id of every document, duplicates included."""
    from plumbline.graph.corpus_size import documents
    from plumbline.raw_corpus.params import CorpusParams
    from plumbline.raw_corpus.rows import RowReader
    from plumbline.raw_corpus.sources.names import file_names, suffix_of

    reader = RowReader("texts", "", int(CorpusParams.model_fields["max_document_bytes"].default))
    for path in [corpus] if corpus.is_file() else (corpus / name for name in sorted(file_names(corpus))):
        suffix = suffix_of(path.name)
        if suffix is not None and path.is_file():
            yield from (document.doc_id for document in documents(path, suffix, reader))
