"""How large the corpus is: counted where it is tokenized already, else estimated from its files' first documents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plumbline.artifact import read_json
from plumbline.params import Params
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.params import CorpusParams, Directory, PythonStdlib
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.sources.directory import domain_of, read_file
from plumbline.raw_corpus.sources.names import file_names, suffix_of

PEEKED = 40
"""Documents per source that are read for an estimate, and files that they may come from."""
UNPACKED = {".jsonl.gz": 4.0, ".parquet": 2.0}
"""Bytes of text per byte of a compressed file, roughly."""


@dataclass(frozen=True)
class CorpusSize:
    """Amounts of the corpus."""

    bytes: int
    documents: int
    samples: int
    tokens: int
    domains: int
    texts: tuple[str, ...] = ()
    """Some of the documents, to measure the speed of this machine with."""
    is_estimate: bool = True
    uncounted: tuple[str, ...] = ()
    """Sources on the hub, whose size is not known before they are read."""

    @property
    def sample_tokens(self) -> float:
        """Mean tokens of a sample."""
        return self.tokens / max(self.samples, 1)


def corpus_size(params: Params, root: Path, longest: int, count_tokens: Callable[[str], int]) -> CorpusSize:
    """The amounts of the corpus that params.yaml names.

    Args:
        longest: tokens of the longest sample.
        count_tokens: of a text.
    """
    size = _estimate(params.corpus, root, longest, count_tokens)
    accounting = root / "data/tokenized_samples/accounting.json"
    if not accounting.is_file():
        return size
    content = read_json(accounting)
    counts = [content["by_split"][split] for split in content["by_split"]]
    documents, samples, tokens = (sum(entry[key] for entry in counts) for key in ("documents", "samples", "tokens"))
    return CorpusSize(size.bytes, documents, samples, tokens, len(content["by_domain"]), size.texts, False)


def _estimate(corpus: CorpusParams, root: Path, longest: int, count_tokens: Callable[[str], int]) -> CorpusSize:
    total, documents, samples, tokens = 0, 0.0, 0.0, 0.0
    domains: set[str] = set()
    texts: list[str] = []
    uncounted = []
    sources = dict(corpus.in_order())
    if (root / corpus.inbox).is_dir():
        sources["inbox"] = Directory(kind="directory", path=corpus.inbox)
    for name, source in sources.items():
        if isinstance(source, PythonStdlib):
            size, first, names = _stdlib()
        elif isinstance(source, Directory):
            size, first, names = _folder(name, source, root / Path(source.path).expanduser(), corpus.max_document_bytes)
        else:
            uncounted.append(name)
            continue
        if not first:
            continue
        counts = [count_tokens(text) for text in first]
        share = size / max(sum(len(text.encode()) for text in first), 1)
        total += size
        documents += share * len(first)
        tokens += share * sum(counts)
        samples += share * sum(math.ceil(count / longest) for count in counts)
        domains |= names
        texts += first
    return CorpusSize(
        total, round(documents), round(samples), round(tokens), len(domains), tuple(texts), True, tuple(uncounted)
    )


def _stdlib() -> tuple[int, list[str], set[str]]:
    from plumbline.raw_corpus.sources.python_stdlib import code_and_prose, modules

    size = sum(path.stat().st_size for _, path in modules())
    pairs = itertools.islice(code_and_prose(), PEEKED)
    return size, [text for _, prose, code in pairs for text in (prose, code) if text], {"prose", "code"}


def _folder(name: str, source: Directory, folder: Path, limit: int) -> tuple[int, list[str], set[str]]:
    """Bytes of text below a folder, its first documents, and its domains."""
    reader = RowReader(name, "", limit, source.column, source.read, source.chat)
    total, texts, domains = 0.0, list[str](), set[str]()
    names = [folder.name] if folder.is_file() else sorted(file_names(folder)) if folder.is_dir() else []
    for file in names:
        path, suffix = (folder if folder.is_file() else folder / file), suffix_of(file)
        if suffix is None or not path.is_file() or (name == "inbox" and file == "README.md"):
            continue
        total += path.stat().st_size * UNPACKED.get(suffix, 1.0)
        domains.add(source.domain or domain_of(file, name))
        if len(texts) < PEEKED:
            texts += map(_text, itertools.islice(documents(path, suffix, reader), PEEKED - len(texts)))
    return round(total), texts, domains


def documents(path: Path, suffix: str, reader: RowReader) -> Iterator[Document]:
    """The documents of a file; of an unreadable one those before the error, which raw_corpus reports."""
    with suppress(Exception):
        yield from (row for row in read_file(path, suffix, reader) if isinstance(row, Document))


def _text(document: Document) -> str:
    if document.text is not None:
        return document.text
    return "\n".join(message["content"] or "" for message in document.chat()[0])
