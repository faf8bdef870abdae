"""Finished measurements in a JSON file, so that an interrupted run resumes and a table can be made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, sha256_json, write_json


class Results:
    """Figures by key, each with a digest of all that decides them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stored: dict[str, dict[str, Any]] = read_json(file) if file.is_file() else {}

    def get(
        self, key: str, decided_by: Mapping[str, Any], measure: Callable[[], Any], folder: Path | None = None
    ) -> Any:
        """The figures under `key`: the stored ones if the same things decide them, or measured now.

        Args:
            decided_by: what the figures depend on, as JSON: settings, versions, digests.
            folder: what the measurement leaves; measured again where it is missing.
        """
        digest = sha256_json(dict(decided_by))
        entry = self.stored.get(key, {})
        if entry.get("decided_by") != digest or (folder is not None and not folder.exists()):
            started = time.perf_counter()
            print(f"  {key} ...", end="", flush=True)
            try:
                self.stored[key] = {"decided_by": digest, "figures": measure()}
            finally:
                print(f" {time.perf_counter() - started:.0f} s", flush=True)
            write_json(self.file, self.stored)
        return self.stored[key]["figures"]
