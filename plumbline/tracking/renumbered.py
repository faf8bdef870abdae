"""The history of promotions in a registry that was lost and made again: the models are the same, their numbers not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.promotion_entry import Promotion

LOST = "lost:"
"""Begins the number of a version that the registry no longer has under any number."""


def renumbered(entries: Iterable[Promotion], versions: Sequence[ModelVersion]) -> list[Promotion]:
    """The entries with the numbers that their models have today.

    An entry that records no model keeps its number.
    """
    models = {version.version: version.model for version in versions}
    numbers = {version.model: version.version for version in reversed(versions)}
    today: dict[str, str] = {}
    changed = []
    for entry in entries:
        known = entry.model and models.get(entry.version) != entry.model
        number = numbers.get(entry.model, f"{LOST}{entry.version}") if known else entry.version
        before = entry.from_version and today.get(entry.from_version, entry.from_version)
        today[entry.version] = number
        changed.append(replace(entry, version=number, from_version=before))
    return changed
