"""Forward lineage: every calibration set, model and deployment that contains a document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from plumbline.provenance.link import dig
from plumbline.provenance.version_index import RecordedVersion, model_versions, set_versions
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.params import ChatFields
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.sources.directory import read_file
from plumbline.raw_corpus.sources.names import SUFFIXES
from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.registry import registered_versions
from plumbline.versioning.cache import cached, cached_folders
from plumbline.yaml_file import read_yaml

Kind = Literal["document", "file", "text", "source"]
DOCUMENT = re.compile(r"[0-9a-f]{8,64}")
LARGEST_DOCUMENT = 1 << 40
"""In effect no limit: `corpus.max_document_bytes` may have been larger when the file was ingested."""


@dataclass(frozen=True)
class Query:
    """The documents or sources to look for."""

    kind: Kind
    shown: str
    documents: frozenset[str] = frozenset()
    """Ids of the documents."""
    prefix: str = ""
    """Prefix of the sources: `NAME`, or `NAME/path`."""

    def matches(self, sample: Mapping[str, Any]) -> bool:
        """Whether a sample contains text of these documents or sources."""
        listed = sample.get("doc_ids")
        if isinstance(listed, list) and self.documents & {str(document) for document in listed}:
            return True
        source = str(sample.get("source", ""))
        return bool(self.prefix) and (source == self.prefix or source.startswith(f"{self.prefix}/"))


@dataclass(frozen=True)
class AffectedVersion:
    """A version of a calibration set or model with at least one matching sample."""

    name: str
    md5: str
    now: bool
    samples: int
    """Number of matching samples."""
    of: int
    """Number of all samples."""
    tokens: int | None = None
    """Tokens in the matching samples; None if they are not on record."""
    deployed: tuple[str, ...] = ()
    """Registered versions of the model, with their aliases."""


@dataclass
class Affected:
    """Everything that the documents or sources affect."""

    what: str
    kind: Kind
    documents: list[str]
    corpus: list[str]
    """Where the documents are in the current corpus: source, row and domain."""
    sets: list[AffectedVersion] = field(default_factory=list)
    models: list[AffectedVersion] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """What cannot be ruled out: registered versions without a record here, and samples without a document."""

    @property
    def touched(self) -> bool:
        """Whether anything is affected, or cannot be ruled out."""
        return bool(self.sets or self.models or self.unknown)

    @property
    def deployments(self) -> list[str]:
        """Registered versions that carry an alias, such as `models:/plumbline/7 @champion`."""
        return sorted({version for model in self.models for version in model.deployed if "@" in version})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"touched": self.touched, **asdict(self), "deployments": self.deployments}


def affected(what: str, root: Path, kind: Kind | None = None) -> Affected:
    """Return every version of every set and model, current or in DVC's cache, that contains text of a reference.

    Args:
        what: a document's id (or at least its first 8 hex digits), a file, a text, or a source (`NAME` or `NAME/path`).
        kind: how to read `what`; None: the first of document, file, source and text that fits.

    Raises:
        ValueError: no document, file, source or text matches.
    """
    query = _query(what, root, kind)
    result = Affected(query.shown, query.kind, sorted(query.documents), _in_corpus(query, root))
    registered: dict[str, list[ModelVersion]] = {}
    for deployed in registered_versions(root):
        registered.setdefault(deployed.model, []).append(deployed)
    for version in set_versions(root):
        written = sum(sample.get("doc_ids") == [] for sample in version.samples)
        if written and query.kind == "text":
            result.unknown.append(
                f"calibration set {version.shown}: {written} samples that the base model wrote itself"
            )
        if hits := [sample for sample in version.samples if query.matches(sample)]:
            tokens = sum(int(sample.get("n_tokens") or 0) for sample in hits)
            result.sets.append(
                AffectedVersion(version.name, version.md5, version.now, len(hits), len(version.samples), tokens)
            )
    with_record = set()
    for version in model_versions(root):
        with_record.add(version.md5)
        if hits := [sample for sample in version.samples if query.matches(sample)]:
            result.models.append(_model(version, len(hits), registered.get(version.md5, [])))
    lost = [deployed.shown for md5, group in registered.items() if md5 not in with_record for deployed in group]
    result.unknown += [f"{name}: its record is neither in the workspace nor in DVC's cache" for name in lost]
    return result


def _model(model: RecordedVersion, hits: int, registered: list[ModelVersion]) -> AffectedVersion:
    deployed = tuple(version.shown for version in registered)
    return AffectedVersion(model.name, model.md5, model.now, hits, len(model.samples), None, deployed)


# ---------------------------------------------------------------------------------------------------------------------
# The query


def _query(what: str, root: Path, kind: Kind | None) -> Query:
    if not what.strip() or "\0" in what:
        raise ValueError("empty argument: expected a document's id, a file, a text or a source")
    readings = {"document": _by_id, "file": _by_file, "source": _by_source, "text": _by_text}
    for reading in [kind] if kind else list(readings):
        query = readings[reading](what, root)
        if query is not None:
            return query
    if kind == "text":  # explicitly a text, so not a misspelt source
        return Query("text", f"the text {what[:60]!r}, which no document here contains")
    as_kind = "" if kind is None else f" (as a {kind})"
    raise ValueError(
        f"{what[:80]!r}{as_kind}: no such document, file, source or text in the corpus "
        f"or in a calibration set; sources: {', '.join(_sources(root)) or 'none'}"
    )


def _by_id(what: str, root: Path) -> Query | None:
    if not DOCUMENT.fullmatch(what):
        return None
    ids = {row["doc_id"] for shard in _shards(root) for row in _rows(shard) if row["doc_id"].startswith(what)}
    for version in (*set_versions(root), *model_versions(root)):
        for sample in version.samples:
            listed = sample.get("doc_ids")
            ids |= {d for d in listed or [] if str(d).startswith(what)} if isinstance(listed, list) else set()
    if len(ids) > 1:
        some = ", ".join(sorted(ids)[:2])
        raise ValueError(f"{what} is the beginning of {len(ids)} documents' ids, such as {some}; give more digits")
    if ids or len(what) == 64:  # an unknown id affects nothing
        return Query("document", f"document {min(ids, default=what)}", frozenset(ids or {what}))
    return None


def _by_file(what: str, root: Path) -> Query | None:
    try:
        path = Path(what) if Path(what).is_file() else root / what
        if not path.is_file():
            return None
    except OSError:  # a text too long for a file name
        return None
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path}: expected one of the corpus's formats: {', '.join(SUFFIXES)}")
    ids: set[str] = set()
    rows = 0
    try:
        for reader in _readers(root):
            for row in read_file(path, suffix, reader):
                rows += 1
                ids |= {row.doc_id} if isinstance(row, Document) else set()
    except Exception as error:  # a broken file can make a reader raise anything
        raise ValueError(f"{path} cannot be read: {str(error)[:200]}") from error
    # Also search by its name in the corpus: it may have had other rows when it was ingested.
    named = Query("source", what, prefix=what)
    in_corpus = any(named.matches({"source": row["source"]}) for shard in _shards(root) for row in _rows(shard))
    prefix = what if in_corpus else ""
    if not ids and not prefix:
        raise ValueError(f"{path} has no document: none of its {rows} rows is readable")
    return Query("file", f"the file {path.name}, {len(ids)} document(s) now", frozenset(ids), prefix)


def _readers(root: Path) -> list[RowReader]:
    """A reader of rows per way in which a source in params.yaml reads them, the default first."""
    readers = [RowReader("file", "file", LARGEST_DOCUMENT)]
    with suppress(OSError, ValueError):
        sources = dig(read_yaml(root / "params.yaml").content, "corpus", "sources")
        for source in (sources or {}).values():
            column, read, chat = (dig(source, name) for name in ("column", "read", "chat"))
            names = ChatFields.model_validate(chat or {})
            readers.append(RowReader("file", "file", LARGEST_DOCUMENT, column or "text", read, names))
    return [reader for i, reader in enumerate(readers) if reader not in readers[:i]]


def _by_source(what: str, root: Path) -> Query | None:
    query = Query("source", f"source {what}", prefix=what.rstrip("/"))
    for shard in _shards(root):
        with suppress(OSError, ValueError, pa.ArrowException):
            sources = pq.read_table(shard, columns=["source"])["source"].unique().to_pylist()
            if any(query.matches({"source": source}) for source in sources):
                return _with_documents(query, root)
    samples = (sample for version in (*set_versions(root), *model_versions(root)) for sample in version.samples)
    return query if any(query.matches(sample) for sample in samples) else None


def _with_documents(query: Query, root: Path) -> Query:
    """Add the ids of the documents: a joined sample names only the source of its first document."""
    rows = (row for shard in _shards(root) for row in _rows(shard))
    ids = {row["doc_id"] for row in rows if query.matches({"source": row["source"]})}
    return Query(query.kind, f"{query.shown}, {len(ids)} documents", frozenset(ids), query.prefix)


def _by_text(what: str, root: Path) -> Query | None:
    """Find every document that contains the text, in the current corpus and in those of DVC's cache."""
    ids = set()
    for shard in _shards(root):
        with suppress(OSError, ValueError, KeyError, pa.ArrowException), pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(columns=["doc_id", "text", "messages"]):
                text = batch.column("text")
                chats = batch.column("messages").to_pylist()
                chat_texts = pa.array(["\n".join(m["content"] for m in chat or []) for chat in chats], pa.string())
                in_text = pc.fill_null(pc.match_substring(text, what), False)
                hits = pc.or_(in_text, pc.match_substring(chat_texts, what))
                ids.update(pc.filter(batch.column("doc_id"), hits).to_pylist())
    return Query("text", f"{len(ids)} document(s) with the text {what[:60]!r}", frozenset(ids)) if ids else None


# ---------------------------------------------------------------------------------------------------------------------
# The corpus


def _shards(root: Path) -> Iterator[Path]:
    """Every shard of the workspace and of the corpora in DVC's cache, without duplicates."""
    yield from sorted((root / "data/raw_corpus/shards").glob("*.parquet"))
    seen = set()
    for _, files in cached_folders(root):
        if "manifest.json" not in files or "duplicates.parquet" not in files:
            continue
        for name, md5 in files.items():
            path = cached(root, md5) if name.startswith("shards/") and md5 not in seen else None
            seen.add(md5)
            if path is not None:
                yield path


def _rows(shard: Path) -> list[dict[str, Any]]:
    with suppress(OSError, ValueError, KeyError, pa.ArrowException):
        return pq.read_table(shard, columns=["doc_id", "domain", "source", "row"]).to_pylist()
    return []


def _in_corpus(query: Query, root: Path) -> list[str]:
    return [
        f"{row['source']} row {row['row']} ({row['domain']})"
        for shard in sorted((root / "data/raw_corpus/shards").glob("*.parquet"))
        for row in _rows(shard)
        if row["doc_id"] in query.documents or (query.prefix and query.matches({"source": row["source"]}))
    ]


def _sources(root: Path) -> list[str]:
    names = {str(row["source"]).split("/")[0] for shard in _shards(root) for row in _rows(shard)}
    return sorted(names)[:12]
