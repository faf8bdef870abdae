"""From a document forward: every calibration set, model and deployment that it touched."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from plumbline.provenance.link import dig
from plumbline.provenance.version_index import Known, known_models, known_sets
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.sources.directory import read_file
from plumbline.raw_corpus.sources.names import SUFFIXES
from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.registry import registered_versions
from plumbline.versioning.cache import cached, cached_folders

Kind = Literal["document", "file", "text", "source"]
DOCUMENT = re.compile(r"[0-9a-f]{8,64}")
LARGEST_DOCUMENT = 1 << 40
"""A file is read whatever `corpus.max_document_bytes` says: it may have been another when the file was ingested."""


@dataclass(frozen=True)
class Wanted:
    """What is looked for."""

    kind: Kind
    shown: str
    documents: frozenset[str] = frozenset()
    """Ids of the documents that are meant."""
    prefix: str = ""
    """Of the sources that are meant: `NAME`, or `NAME/path`."""

    def meets(self, sample: Mapping[str, Any]) -> bool:
        """The sample has text of what is meant."""
        listed = sample.get("doc_ids")
        if isinstance(listed, list) and self.documents & {str(document) for document in listed}:
            return True
        source = str(sample.get("source", ""))
        return bool(self.prefix) and (source == self.prefix or source.startswith(f"{self.prefix}/"))


@dataclass(frozen=True)
class Touched:
    """A calibration set, a model or a deployment."""

    name: str
    md5: str
    now: bool
    samples: int
    """How many of its samples have text of what is meant."""
    of: int
    tokens: int | None = None
    """In those samples; None where they are not on record."""
    deployed: tuple[str, ...] = ()
    """Registered versions of a model, with their aliases."""


@dataclass
class Affected:
    """Everything that was touched."""

    what: str
    kind: Kind
    documents: list[str]
    corpus: list[str]
    """Where the documents stand in the corpus now: source, row and domain."""
    sets: list[Touched] = field(default_factory=list)
    models: list[Touched] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """What cannot be ruled out: registered versions without a record here; texts without a document."""

    @property
    def touched(self) -> bool:
        """Anything that was made from it, or may have been."""
        return bool(self.sets or self.models or self.unknown)

    @property
    def deployments(self) -> list[str]:
        """Registered versions that carry an alias, such as `models:/plumbline/7 @champion`."""
        return sorted({version for model in self.models for version in model.deployed if "@" in version})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"touched": self.touched, **asdict(self), "deployments": self.deployments}


def affected(what: str, root: Path, kind: Kind | None = None) -> Affected:
    """Every version of every set and model, now and in DVC's cache, that has text of what is meant.

    Args:
        what: a document's id (or 8 hex digits of it), a file, a text, or a source (`NAME` or `NAME/path`).
        kind: which of them; None: the first that fits, in this order.

    Raises:
        ValueError: nothing known is meant by it.
    """
    wanted = _wanted(what, root, kind)
    result = Affected(wanted.shown, wanted.kind, sorted(wanted.documents), _in_corpus(wanted, root))
    registered: dict[str, list[ModelVersion]] = {}
    for version in registered_versions(root):
        registered.setdefault(version.model, []).append(version)
    for known in known_sets(root):
        own = sum(sample.get("doc_ids") == [] for sample in known.samples)
        if own and wanted.kind == "text":
            result.unknown.append(f"calibration set {known.shown}: {own} samples that the base model wrote itself")
        if hits := [sample for sample in known.samples if wanted.meets(sample)]:
            tokens = sum(int(sample.get("n_tokens") or 0) for sample in hits)
            result.sets.append(Touched(known.name, known.md5, known.now, len(hits), len(known.samples), tokens))
    with_record = set()
    for known in known_models(root):
        with_record.add(known.md5)
        if hits := [sample for sample in known.samples if wanted.meets(sample)]:
            result.models.append(_model(known, len(hits), registered.get(known.md5, [])))
    lost = [version.shown for md5, of in registered.items() if md5 not in with_record for version in of]
    result.unknown += [f"{name}: its record is neither in the workspace nor in DVC's cache" for name in lost]
    return result


def _model(known: Known, hits: int, registered: list[ModelVersion]) -> Touched:
    deployed = tuple(version.shown for version in registered)
    return Touched(known.name, known.md5, known.now, hits, len(known.samples), None, deployed)


# ---------------------------------------------------------------------------------------------------------------------
# What is meant


def _wanted(what: str, root: Path, kind: Kind | None) -> Wanted:
    if not what.strip() or "\0" in what:
        raise ValueError("nothing was given: expected a document's id, a file, a text or a source")
    readings = {"document": _by_id, "file": _by_file, "source": _by_source, "text": _by_text}
    for each in [kind] if kind else list(readings):
        found = readings[each](what, root)
        if found is not None:
            return found
    if kind == "text":  # asked for by name, so that it is no misspelt source
        return Wanted("text", f"the text {what[:60]!r}, which is in no document known here")
    raise ValueError(
        f"{what[:80]!r}: no document, file, source or text of the corpus or of a calibration set here "
        f"{'' if kind is None else f'(as a {kind}) '}is that; sources: {', '.join(_sources(root)) or 'none'}"
    )


def _by_id(what: str, root: Path) -> Wanted | None:
    if not DOCUMENT.fullmatch(what):
        return None
    found = {row["doc_id"] for shard in _shards(root) for row in _rows(shard) if row["doc_id"].startswith(what)}
    for known in (*known_sets(root), *known_models(root)):
        for sample in known.samples:
            listed = sample.get("doc_ids")
            found |= {d for d in listed or [] if str(d).startswith(what)} if isinstance(listed, list) else set()
    if len(found) > 1:
        some = ", ".join(sorted(found)[:2])
        raise ValueError(f"{what} is the beginning of {len(found)} documents' ids, such as {some}; give more of it")
    if found or len(what) == 64:  # one that nothing here knows has touched nothing
        return Wanted("document", f"document {min(found, default=what)}", frozenset(found or {what}))
    return None


def _by_file(what: str, root: Path) -> Wanted | None:
    try:
        path = Path(what) if Path(what).is_file() else root / what
        if not path.is_file():
            return None
    except OSError:  # a text, too long for a name
        return None
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path}: expected one of {', '.join(SUFFIXES)}, which is what the corpus is read from")
    found: set[str] = set()
    rows = 0
    try:
        for column in _columns(root):
            for row in read_file(path, suffix, RowReader("file", "file", LARGEST_DOCUMENT, column)):
                rows += 1
                found |= {row.doc_id} if isinstance(row, Document) else set()
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {str(error)[:200]}") from error
    # Under its name in the corpus, too: it may have held other rows when it was ingested.
    named = Wanted("source", what, prefix=what)
    in_corpus = any(named.meets({"source": row["source"]}) for shard in _shards(root) for row in _rows(shard))
    prefix = what if in_corpus else ""
    if not found and not prefix:
        raise ValueError(f"{path} holds no document: {rows} rows, none of them readable")
    return Wanted("file", f"the file {path.name}, {len(found)} document(s) now", frozenset(found), prefix)


def _columns(root: Path) -> list[str]:
    """Names under which the sources of params.yaml keep their texts."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        sources = dig(yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")), "corpus", "sources")
        named = [dig(source, "column") for source in (sources or {}).values()]
        return list(dict.fromkeys(["text", *(name for name in named if isinstance(name, str))]))
    return ["text"]


def _by_source(what: str, root: Path) -> Wanted | None:
    wanted = Wanted("source", f"source {what}", prefix=what.rstrip("/"))
    for shard in _shards(root):
        with suppress(OSError, ValueError, pa.ArrowException):
            sources = pq.read_table(shard, columns=["source"])["source"].unique().to_pylist()
            if any(wanted.meets({"source": source}) for source in sources):
                return _with_documents(wanted, root)
    samples = (sample for known in (*known_sets(root), *known_models(root)) for sample in known.samples)
    return wanted if any(wanted.meets(sample) for sample in samples) else None


def _with_documents(wanted: Wanted, root: Path) -> Wanted:
    """Also the documents by their ids: a joined sample names the source of its first document only."""
    rows = (row for shard in _shards(root) for row in _rows(shard))
    found = {row["doc_id"] for row in rows if wanted.meets({"source": row["source"]})}
    return Wanted(wanted.kind, f"{wanted.shown}, {len(found)} documents", frozenset(found), wanted.prefix)


def _by_text(what: str, root: Path) -> Wanted | None:
    """Every document that contains the text, in whatever corpus is still known."""
    found = set()
    for shard in _shards(root):
        with suppress(OSError, ValueError, KeyError, pa.ArrowException), pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(columns=["doc_id", "text", "messages"]):
                text = batch.column("text")
                chats = batch.column("messages").to_pylist()
                said = pa.array(["\n".join(m["content"] for m in chat or []) for chat in chats], pa.string())
                in_text = pc.fill_null(pc.match_substring(text, what), False)
                hits = pc.or_(in_text, pc.match_substring(said, what))
                found.update(pc.filter(batch.column("doc_id"), hits).to_pylist())
    return Wanted("text", f"{len(found)} document(s) with the text {what[:60]!r}", frozenset(found)) if found else None


# ---------------------------------------------------------------------------------------------------------------------
# The corpus


def _shards(root: Path) -> Iterator[Path]:
    """Every shard of the workspace, and of every corpus that DVC's cache has; each content once."""
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


def _in_corpus(wanted: Wanted, root: Path) -> list[str]:
    return [
        f"{row['source']} row {row['row']} ({row['domain']})"
        for shard in sorted((root / "data/raw_corpus/shards").glob("*.parquet"))
        for row in _rows(shard)
        if row["doc_id"] in wanted.documents or (wanted.prefix and wanted.meets({"source": row["source"]}))
    ]


def _sources(root: Path) -> list[str]:
    found = {str(row["source"]).split("/")[0] for shard in _shards(root) for row in _rows(shard)}
    return sorted(found)[:12]
