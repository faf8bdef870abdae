"""The history of promotions as a hash chain, and its copy in the workspace.

Each entry holds the digest of the entry before it, so a changed or removed entry contradicts every later one.
`promotions.jsonl` repeats the entries in the workspace, where git keeps them, so that the newest entry has a witness.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import canonical_json, replace_text, sha256_json

COPY = "promotions.jsonl"
PREVIOUS = "previous"
"""Key of an entry: the digest of the entry before it. Entries of earlier versions of Plumbline lack it."""
Entries = Mapping[int, dict[str, Any]]
"""Entry by number."""


def entry_digest(entry: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of an entry, whatever the order of its keys."""
    return sha256_json(dict(entry))


def digest_before(entries: Entries, number: int) -> str:
    """The digest that the entry with this number has to hold; empty for the first."""
    before = max((other for other in entries if other < number), default=None)
    return "" if before is None else entry_digest(entries[before])


def broken(entries: Entries) -> list[str]:
    """A sentence per entry that does not hold the digest of the one before it."""
    return [
        f"promotion {number} does not follow the one before it: an earlier entry was changed, added or removed"
        for number in sorted(entries)
        if PREVIOUS in entries[number] and entries[number][PREVIOUS] != digest_before(entries, number)
    ]


def read_copy(root: Path, registered_model: str) -> dict[int, dict[str, Any]]:
    """The entries of one registered model in the workspace's copy; empty without the file.

    Raises:
        ValueError: a line is not an entry; the message names it.
    """
    path = root / COPY
    entries: dict[int, dict[str, Any]] = {}
    if not path.is_file():
        return entries
    for row, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            entry = json.loads(line)
            name, number = entry.pop("registered_model"), int(entry.pop("number"))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"{COPY} line {row}: not an entry of the history; restore the file with git") from error
        if name == registered_model and entries.setdefault(number, entry) != entry:
            raise ValueError(f"{COPY} line {row}: promotion {number} is there twice; restore the file with git")
    return entries


def contradictions(entries: Entries, copy: Entries) -> list[str]:
    """Where the registry's history is not what the workspace recorded. A copy that ends earlier is no contradiction."""
    wrong = []
    for number in sorted(copy):
        if number not in entries:
            wrong.append(f"{COPY} has promotion {number}, the registry lacks it")
        elif entries[number] != copy[number]:
            keys = {*entries[number], *copy[number]}
            other = sorted(key for key in keys if entries[number].get(key) != copy[number].get(key))
            wrong.append(f"promotion {number}: {', '.join(other)} differ between the registry and {COPY}")
    return wrong


def write_copy(root: Path, registered_model: str, entries: Entries) -> None:
    """Add to the workspace's copy the entries that it lacks; lines that are there stay as they are.

    Raises:
        ValueError: the copy cannot be read.
    """
    known = read_copy(root, registered_model)
    new = [
        canonical_json({"registered_model": registered_model, "number": number, **entries[number]})
        for number in sorted(entries.keys() - known.keys())
    ]
    if new:
        path = root / COPY
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        replace_text(path, "".join([before, *(f"{line}\n" for line in new)]))
