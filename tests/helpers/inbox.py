"""Take in all files of an inbox."""

from __future__ import annotations

from plumbline.raw_corpus.intake import Intake, IntakeChanges, take_in
from plumbline.raw_corpus.stores import InboxStore


def take_in_all(
    store: InboxStore, before: Intake | None = None, waiting: tuple[str, ...] = ()
) -> tuple[Intake, IntakeChanges]:
    looked = store.look()
    after, changes, _ = take_in(before or Intake(), store, looked, {n: None for n in looked if n not in waiting})
    return after, changes
