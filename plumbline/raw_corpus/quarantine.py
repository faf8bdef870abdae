"""The files that a corpus holds back whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from plumbline.artifact import read_json
from plumbline.raw_corpus.shards import rejected_path


def quarantine(folder: Path) -> list[dict[str, Any]]:
    """The files that are held back whole: file, rows, and the first row's reason with what was found.

    They are the unreadable files of every source, and the files of the inbox with too many bad rows.
    """
    held_back = []
    for entry in read_json(folder / "manifest.json")["shards"]:
        if not entry.get("quarantined"):
            continue
        [first, *_] = pq.read_table(rejected_path(folder, entry["shard"])).to_pylist()
        why = f"{first['reason']}: {first['detail']}"
        where = "" if first["row"] is None else first["row"]
        held_back.append(
            {"file": f"{entry['source']}/{entry['file']}", "rows": entry["rows"], "row": where, "why": why}
        )
    return held_back
