"""Writes the papers of an audited model: `plumbline audit --bom FILE --croissant FILE`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, replace_text
from plumbline.provenance import data_links
from plumbline.provenance.cache_recovery import SET, chain_hashes
from plumbline.provenance.link import Case, dig
from plumbline.provenance.papers.bom import bill_of_materials
from plumbline.provenance.papers.croissant import FILE, croissant
from plumbline.provenance.papers.facts import PaperFacts
from plumbline.versioning.digest import Hasher
from plumbline.versioning.object_store import Store


def require_outside(target: Path, model: Path, root: Path) -> None:
    """Refuse a file inside the model's folder or an artifact of the workspace: it would change their hashes.

    Raises:
        ValueError: the file would lie there, or its folder does not exist.
    """
    place = target.resolve()
    for folder in (model.resolve(), (root / "data").resolve()):
        if place.is_relative_to(folder):
            raise ValueError(f"{target} would lie in {folder}, whose hash is on record; name a file elsewhere")
    if not place.parent.is_dir():
        raise ValueError(f"{target}: the folder {place.parent} does not exist")


def write_bom(facts: PaperFacts, target: Path) -> None:
    """Write the model's bill of materials."""
    replace_text(target, _text(bill_of_materials(facts)))


def write_croissant(facts: PaperFacts, case: Case, target: Path) -> None:
    """Write the Croissant document of the model's calibration set.

    Raises:
        ValueError: neither the workspace nor DVC's cache has the set that the model was calibrated on.
    """
    with _calibration_set(case) as folder:
        content = croissant(facts, read_json(folder / "manifest.json"), folder / FILE)
    replace_text(target, _text(content))


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@contextlib.contextmanager
def _calibration_set(case: Case) -> Iterator[Path]:
    """The folder of the model's calibration set, verified: in the workspace, else a copy from DVC's cache."""
    link = data_links.calibration_set(case)
    path = f"{SET}/{dig(case.record, 'calibration_set', 'choice', 'name')}"
    if link.status == "verified":
        yield case.root / path
        return
    md5 = chain_hashes(case).get(path)
    with tempfile.TemporaryDirectory(prefix="plumbline-audit-") as scratch:
        root = Path(scratch)
        if md5 is not None:
            with contextlib.suppress(OSError, ValueError):  # the link says what to do
                Store(case.root).place(md5, root / path)
        restored = replace(case, root=root, lock={}, hasher=Hasher())  # a hasher caches by inode
        restored.__dict__["made_by"] = None
        if data_links.calibration_set(restored).status != "verified":
            raise ValueError(f"{link.meaning}, and DVC's cache lacks the set; {link.fix}")
        yield root / path
