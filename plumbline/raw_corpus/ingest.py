"""raw_corpus: every source file becomes one shard of documents; rejected rows are counted and stored apart."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import link_or_copy, read_json
from plumbline.progress import Bar
from plumbline.raw_corpus.document import APART
from plumbline.raw_corpus.file_hashes import FileHashes
from plumbline.raw_corpus.intake import Intake, take_in
from plumbline.raw_corpus.params import CorpusParams, Directory, PythonStdlib
from plumbline.raw_corpus.shards import TableWriter, rejected_path, shard_name, shard_path, write_shard
from plumbline.raw_corpus.source_file import NO_FAULT, REASONS, SourceFile, bad_rows, key_of
from plumbline.raw_corpus.sources import inbox
from plumbline.raw_corpus.sources.inbox import INBOX
from plumbline.raw_corpus.stores import store_of

log = logging.getLogger(__name__)

DUPLICATES = pa.schema(
    [("shard", pa.string()), ("row", pa.int64()), ("doc_id", pa.string()), ("first_source", pa.string())]
)


def require_free_names(params: CorpusParams) -> None:
    """Refuse a source whose name would give its documents the `source` of another.

    Raises:
        ValueError: names the source and who has the name.
    """
    taken = {INBOX: "the inbox folder", **{name: f"corpus.{name}" for name in APART}}
    for name in params.sources:
        if (owner := taken.get(name.split("/")[0])) is not None:  # a document's source is `name/file`
            raise ValueError(f"params.yaml corpus.sources.{name}: the name is taken by {owner}; choose another")


def write_shards(
    params: CorpusParams,
    root: Path,
    out: Path,
    previous: Path | None,
    hashes: FileHashes,
    intake: Intake | None,
) -> list[dict[str, Any]]:
    """One shard per source file, written or taken over from `previous`; their rows of the manifest, in order.

    Raises:
        FileNotFoundError: a source's folder does not exist.
    """
    old = _shards_of(previous)
    entries: list[dict[str, Any]] = []
    reused = 0
    with Bar(desc="raw_corpus", unit=" files") as progress:
        for source, file in _source_files(params, root, hashes, intake):
            progress.set_postfix_str(f"{source}/{file.name}"[-40:])
            shard = shard_name(source, file)
            entry = old.get(shard)
            if entry is not None and previous is not None and _link(previous, out, entry):
                reused += 1
            else:
                entry = write_shard(source, file, shard, out)
            entries.append(entry)
            progress.update()
    hashes.save()
    log.info("took over %d of %d shards", reused, len(entries))
    return entries


def _source_files(
    params: CorpusParams, root: Path, hashes: FileHashes, intake: Intake | None
) -> Iterator[tuple[str, SourceFile]]:
    limit = params.max_document_bytes
    store = store_of(params.inbox, root, params.max_file_bytes)
    if intake is None:
        intake, _, _ = take_in(Intake(), store, looked := store.look(), dict.fromkeys(looked))
    for name, source in params.in_order().items():
        if isinstance(source, PythonStdlib):
            from plumbline.raw_corpus.sources import python_stdlib

            yield from ((name, file) for file in python_stdlib.source_files(name, limit, hashes))
        elif isinstance(source, Directory):
            from plumbline.raw_corpus.sources import directory

            folder = root / Path(source.path).expanduser()
            if not folder.exists():
                raise FileNotFoundError(
                    f"params.yaml {key_of(name)}.path: {source.path!r} does not exist (looked for {folder}); "
                    f"give the path of a folder, absolute or relative to the project"
                )
            yield from ((name, file) for file in directory.source_files(name, source, folder, limit, hashes))
        else:
            from plumbline.raw_corpus.sources import huggingface

            at = source.model_copy(update={"revision": intake.revisions.get(name, source.revision)})
            yield from ((name, file) for file in huggingface.source_files(name, at, root, limit, hashes))
    yield from ((INBOX, file) for file in inbox.source_files(intake, store, params))


def _shards_of(previous: Path | None) -> dict[str, dict[str, Any]]:
    """The manifest's rows by shard, without the duplicates of other files."""
    if previous is None or not (previous / "manifest.json").is_file():
        return {}
    entries = {}
    for entry in read_json(previous / "manifest.json")["shards"]:
        of_others = entry.pop("duplicates")
        entry["documents"] += of_others
        within = {**entry["rejected"], "duplicate": entry["rejected"].get("duplicate", 0) - of_others}
        entry["rejected"] = {reason: n for reason, n in sorted(within.items()) if n}
        entries[entry["shard"]] = entry
    return entries


def _link(previous: Path, out: Path, entry: dict[str, Any]) -> bool:
    """Link an unchanged shard; False if one of its files is missing, so that it must be read again."""
    names = [path for path, rows in ((shard_path, entry["documents"]), (rejected_path, entry["rejected"])) if rows]
    if not all(path(previous, entry["shard"]).is_file() for path in names):
        return False
    for path in names:
        link_or_copy(path(previous, entry["shard"]), path(out, entry["shard"]))
    return True


def mark_duplicates(entries: list[dict[str, Any]], out: Path) -> None:
    """Write duplicates.parquet, and move each shard's duplicates of other files from `documents` to `rejected`.

    `duplicates` of the manifest is the number of the shard's rejected duplicates that are in its file nevertheless,
    since the file must not change when an earlier file is added or removed.
    """
    seen: dict[bytes, int] = {}  # about 150 bytes per document of the corpus
    writer = TableWriter(out / "duplicates.parquet", DUPLICATES)
    for i, entry in enumerate(entries):
        entry["duplicates"] = 0
        if not entry["documents"]:
            continue
        with pq.ParquetFile(shard_path(out, entry["shard"])) as file:
            for batch in file.iter_batches(columns=["doc_id", "row"]):
                for doc_id, row in zip(
                    batch.column("doc_id").to_pylist(), batch.column("row").to_pylist(), strict=True
                ):
                    first = seen.setdefault(bytes.fromhex(doc_id), i)
                    if first == i:
                        continue
                    first_source = f"{entries[first]['source']}/{entries[first]['file']}"
                    duplicate = {"shard": entry["shard"], "row": row, "doc_id": doc_id, "first_source": first_source}
                    writer.append(duplicate, 200)
                    entry["duplicates"] += 1
        if entry["duplicates"]:
            entry["documents"] -= entry["duplicates"]
            duplicates = entry["rejected"].get("duplicate", 0) + entry["duplicates"]
            entry["rejected"] = dict(sorted({**entry["rejected"], "duplicate": duplicates}.items()))
    writer.close()
    if not writer.rows:
        pq.write_table(DUPLICATES.empty_table(), out / "duplicates.parquet")


def totals_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows, documents and rejections by reason, over all shards."""
    rejected: Counter[str] = Counter()
    for entry in entries:
        rejected.update(entry["rejected"])
    documents = sum(entry["documents"] for entry in entries)
    rows = sum(entry["rows"] for entry in entries)
    assert rows == documents + rejected.total(), "raw_corpus lost count of its rows"
    return {"rows": rows, "documents": documents, "rejected": dict(sorted(rejected.items()))}


def require_enough(totals: dict[str, Any], entries: list[dict[str, Any]], out: Path, params: CorpusParams) -> None:
    """Refuse an empty corpus, and one of which more rows were rejected than `params` allows.

    Raises:
        ValueError: names the worst file and its first bad row.
    """
    if not totals["documents"] and not totals["rejected"]:
        raise ValueError(
            f"the corpus is empty: no source in params.yaml (corpus.sources: {', '.join(params.sources) or 'none'}) "
            f"and no file in the inbox {params.inbox!r} has a row; add a source or put a file into the inbox"
        )
    counted = [entry for entry in entries if not entry.get("quarantined")] or entries
    rows = sum(entry["rows"] for entry in counted)
    bad = sum(bad_rows(entry["rejected"]) for entry in counted)
    if bad <= params.max_rejected * rows and totals["documents"]:
        return
    faults = [(n, r, entry) for entry in entries for r, n in entry["rejected"].items() if r not in NO_FAULT]
    if not faults:
        raise ValueError(f"the corpus is empty: all {totals['rows']} rows are blank; add a source with texts")
    count, reason, entry = max(faults, key=lambda fault: fault[0])
    table = pq.read_table(rejected_path(out, entry["shard"])).to_pylist()
    example = next(row for row in table if row["reason"] == reason)
    where = "the file" if example["row"] is None else f"row {example['row']}"
    raise ValueError(
        f"{bad} of {rows} rows were rejected; corpus.max_rejected in params.yaml allows "
        f"{100 * params.max_rejected:.1f} %. Worst: {example['file']}, {count} of {entry['rows']} rows, {reason} "
        f"({REASONS[reason]}), first at {where}: {example['detail']}. Repair or remove the file, or raise the limit"
    )
