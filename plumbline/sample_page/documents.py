"""The documents behind samples, looked up in the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import read_json
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.shards import shard_path

JOINED = " + "
"""Between the sources of a sample that was joined of several."""


def documents_of(corpus: Path, samples: Iterable[Mapping[str, Any]]) -> dict[str, Document]:
    """The documents that samples name, by id; those that the corpus does not hold unaltered are absent.

    Only shards of the files that the samples name are read, and of these only row groups with a wanted document.

    Args:
        samples: each with `doc_ids` and `source`.
    """
    rows = list(samples)
    wanted = {document for row in rows for document in row["doc_ids"]}
    sources = {source for row in rows for source in (row["source"], *row["source"].split(JOINED))}
    documents: dict[str, Document] = {}
    for entry in read_json(corpus / "manifest.json")["shards"]:
        path = shard_path(corpus, entry["shard"])
        if f"{entry['source']}/{entry['file']}" not in sources or not path.is_file():
            continue
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, ["doc_id"])["doc_id"].to_pylist()
                places = [place for place, document in enumerate(ids) if document in wanted - documents.keys()]
                for stored in file.read_row_group(group).take(pa.array(places)).to_pylist() if places else []:
                    recorded, messages = stored.pop("doc_id"), stored.pop("messages")
                    document = Document(messages=None if messages is None else tuple(messages), **stored)
                    if document.doc_id == recorded:
                        documents.setdefault(recorded, document)
    return documents
