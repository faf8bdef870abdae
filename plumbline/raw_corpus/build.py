"""raw_corpus: reads the sources in params.yaml and the inbox; writes a shard per source file and manifest.json."""

from __future__ import annotations

import platform
from pathlib import Path

from plumbline.artifact import write_json
from plumbline.raw_corpus.file_hashes import FileHashes
from plumbline.raw_corpus.ingest import (
    mark_duplicates,
    require_enough,
    require_free_names,
    totals_of,
    write_shards,
)
from plumbline.raw_corpus.intake import Intake
from plumbline.raw_corpus.params import CorpusParams, PythonStdlib
from plumbline.raw_corpus.sources.inbox import INBOX


def build_raw_corpus(
    params: CorpusParams,
    root: Path,
    out: Path,
    previous: Path | None = None,
    hashes: FileHashes | None = None,
    intake: Intake | None = None,
) -> None:
    """Ingest production, what is out of domain, the sources in the order of `params.sources`, then what was taken in
    from the inbox, into the empty folder `out`.

    Args:
        root: folder against which relative source paths and the inbox resolve.
        previous: an earlier raw_corpus of the same code; a file whose shard is there is linked, not read.
        hashes: remembers the digests of files, so that an unchanged file need not be hashed again; saved at the end.
        intake: what was taken in from the inbox, and the commits of hub datasets; None: what is in the inbox now.

    Raises:
        ValueError: too many rows were rejected, or there is no document, or the params contradict each other.
        FileNotFoundError: a source's folder does not exist.
    """
    require_free_names(params)
    sources = params.in_order()
    entries = write_shards(params, root, out, previous, hashes or FileHashes(), intake)
    mark_duplicates(entries, out)
    totals = totals_of(entries)
    require_enough(totals, entries, out, params)
    uses_python = any(isinstance(source, PythonStdlib) for source in sources.values())
    manifest = {
        "python": platform.python_version() if uses_python else None,
        "sources": [*sources, INBOX],
        "shards": entries,
        "totals": totals,
    }
    write_json(out / "manifest.json", manifest)
