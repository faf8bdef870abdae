"""The texts that models are judged on: read by the readers of raw_corpus, tokenized by the base model's tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.evaluation.held_out import HeldOut
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import Rejected
from plumbline.raw_corpus.sources.directory import domain_of, read_file
from plumbline.raw_corpus.sources.names import SUFFIXES, as_text, file_names, suffix_of
from plumbline.tokenized_samples.batches import sample_id
from plumbline.tokenized_samples.encode import Encoder
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.windows import windows

if TYPE_CHECKING:
    from plumbline.base_model.checkpoint import BaseCheckpoint

LARGEST = 20_000_000
"""Bytes of a document."""


@dataclass(frozen=True)
class JudgedTexts:
    """Documents, without repeats, and what was not one."""

    documents: list[Document]
    rejected: dict[str, int]
    """Rows by reason; `duplicate` among them."""
    first_rejected: str
    """File, row and reason of the first row that is no document; empty if all are."""


def read_texts(paths: Sequence[Path]) -> JudgedTexts:
    """The documents of files and folders: .txt and .md (a document each), .jsonl, .jsonl.gz and .parquet (rows).

    The domain of a document is the first folder below the path that was named, else the path's own name.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is no document; names the first row that is none.
    """
    documents: dict[str, Document] = {}
    rejected: Counter[str] = Counter()
    first = ""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"--texts: {path} does not exist; give a file or a folder of {', '.join(SUFFIXES)}")
        for file, result in _rows(path):
            if isinstance(result, Document) and result.doc_id not in documents:
                documents[result.doc_id] = result
                continue
            reason = result.reason if isinstance(result, Rejected) else "duplicate"
            rejected[reason] += 1
            if isinstance(result, Rejected) and not first:
                row = "" if result.row is None else f" row {result.row}"
                first = f"{file}{row}: {result.reason}: {result.detail}"
    if not documents:
        why = f"; the first: {first}" if first else ""
        raise ValueError(
            f"--texts: no document in {', '.join(map(str, paths))} ({rejected.total()} rows rejected{why}); expected "
            f"{', '.join(SUFFIXES)}, rows with a field `text` or a chat under `messages`"
        )
    return JudgedTexts(list(documents.values()), dict(sorted(rejected.items())), first)


def _rows(path: Path) -> Iterator[tuple[str, Document | Rejected]]:
    """(file, row) of every row below a path, files in order of their name."""
    single = path.is_file()
    name = path.resolve().name
    for relative in [path.name] if single else sorted(file_names(path)):
        file = path if single else path / relative
        shown = as_text(relative)
        suffix = suffix_of(shown)
        if suffix is None or not file.is_file():
            yield shown, Rejected(None, "unsupported", f"expected one of {', '.join(SUFFIXES)}")
            continue
        domain = name.removesuffix(suffix) if single else domain_of(shown, name)
        try:
            for result in read_file(file, suffix, RowReader(shown, domain, LARGEST)):
                yield shown, result
        except Exception as error:  # a broken file can make a reader raise anything
            if isinstance(error, MemoryError):
                raise
            yield shown, Rejected(None, "unreadable", f"{type(error).__name__}: {error}"[:300])


def tokenized(
    texts: JudgedTexts,
    base: BaseCheckpoint,
    max_length: int,
    tokens_per_domain: int | None,
    windows_per_document: int | None,
) -> tuple[HeldOut, str, dict[str, int]]:
    """The samples of the texts, the tokenization's fingerprint, and the chats that the template refused, by reason.

    Per domain, documents in order of their id (a hash, so in random order) until there are `tokens_per_domain` tokens;
    of a document, the `windows_per_document` windows with the lowest sample ids. None: no limit.

    Raises:
        ValueError: a chat and no chat template, no sample of two tokens or more, or `max_length` leaves no room.
    """
    policy = TokenizeParams(max_length=max_length, min_tokens=2)
    encoder = Encoder(base, policy)
    refused: Counter[str] = Counter()
    by_domain: dict[str, list[Document]] = {}
    for document in sorted(texts.documents, key=lambda document: document.doc_id):
        by_domain.setdefault(document.domain, []).append(document)
    ids: list[str] = []
    doc_ids: list[str] = []
    domains: list[str] = []
    tokens: list[Any] = []
    counts: dict[str, dict[str, int]] = {}
    for domain, documents in sorted(by_domain.items()):
        count = {"documents": 0, "samples": 0, "tokens": 0, "documents_available": len(documents)}
        for document in documents:
            if tokens_per_domain is not None and count["tokens"] >= tokens_per_domain:
                break
            [encoded] = encoder.encode([document])
            if isinstance(encoded, str):
                refused[encoded] += 1
                continue
            cut, _ = windows(encoded.content, encoded.prefix, encoded.suffix, policy)
            named = sorted((sample_id(window.input_ids), window) for window in cut if len(window.input_ids) > 1)
            for name, window in sorted(named[:windows_per_document], key=lambda pair: pair[1].index):
                ids.append(name)
                doc_ids.append(document.doc_id)
                domains.append(domain)
                tokens.append(window.input_ids.astype("int64"))
                count["samples"] += 1
                count["tokens"] += len(window.input_ids)
            count["documents"] += bool(named)
        counts[domain] = count
    if not ids:
        why = f"; the chat template refused {refused.total()} chats: {next(iter(refused))}" if refused else ""
        raise ValueError(f"--texts: {len(texts.documents)} documents gave no sample of two tokens or more{why}")
    return (
        HeldOut(ids, doc_ids, domains, tokens, counts),
        encoder.fingerprint,
        refused,
    )
