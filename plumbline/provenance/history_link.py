"""The link to the history of promotions: an unbroken chain, the same in the workspace, which explains the alias."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from plumbline.provenance.decision_links import decision_of
from plumbline.provenance.link import Case, Link, Status
from plumbline.provenance.registry_text import wrong_promotions
from plumbline.tracking.details import details_reader
from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.promotion import MACHINE, PROMOTED_BY, REASON, PromotionHistory, read_history
from plumbline.tracking.promotion_chain import COPY, PREVIOUS, contradictions, entry_digest, read_copy
from plumbline.tracking.registry import ALIAS, Registry
from plumbline.tracking.store import TrackingError

FIX = (
    "find out who changed the registry; `plumbline log` shows its history, `git log -p promotions.jsonl` that of the "
    "workspace; `plumbline promote` records a move that was meant"
)


def promotion_history(case: Case) -> Link | None:
    """Check the history of the registered model's champions.

    None if this model was never promoted.
    """
    name = "promotion history"
    try:
        model = case.registry.model() if case.registry else None
        if case.registry is None or model is None:
            return None
        versions = {version.version: version for version in case.registry.versions()}
        champion = model.aliases.get(ALIAS, "")
        hidden = bool(champion) and champion not in versions
        if not case.versions and not hidden:
            return None
    except TrackingError:
        return None  # the link `registry` says it
    recorded = read_history([model.tags, *(version.tags for version in versions.values())], champion)
    # A move that was interrupted before the alias moved did not happen, and is no fault.
    problems = [remark for remark in recorded.remarks if not (recorded.pending and remark.endswith("did not happen"))]
    copied = ""
    try:
        copy = read_copy(case.root, case.registry.name)
        problems += contradictions(recorded.numbered, copy)
        copied = f", the same in {COPY}" if copy else f"; {COPY} does not exist here"
        if 0 < len(copy) < len(recorded.entries):
            copied = f"; {COPY} has the first {len(copy)}"
    except ValueError as error:
        copy = {}
        problems.append(str(error))
    own = {version.version for version in case.versions if version.name == case.registry.name}
    if hidden:  # MLflow removes the alias with its version
        own |= {entry.version for entry in recorded.entries if entry.model == case.identity}
        problems.append(f"the alias names version {champion}, which MLflow does not list")
    named = {entry.version for entry in recorded.entries} | {str(entry.get("version")) for entry in copy.values()}
    if not own & ({champion} | named):
        return None
    problems += _against_the_versions(recorded, versions, champion)
    problems += _against_the_decision(case, recorded, versions)
    problems += wrong_promotions(case.registry, _descriptions(case.registry, own))
    unfinished = ""
    if champion and not recorded.entries:
        unfinished = f"version {champion} is the champion, but no promotion is on record"
    elif recorded.pending is not None and recorded.entries[-1:] == (recorded.pending,):
        unfinished = f"the alias names version {champion}, and the entry of that promotion was begun, not recorded"
    elif recorded.entries and recorded.entries[-1].version != champion:
        last = recorded.entries[-1]
        what = f"the last promotion on record made version {last.version} the champion, the alias names "
        what += f"version {champion}" if champion else "none"
        if champion and champion == last.from_version:  # a killed process leaves the same
            unfinished = f"{what}: it was interrupted, or the alias was moved back without a record"
        else:
            problems.append(what)
    if problems or unfinished:
        status: Status = "tampered" if problems else "missing"
        return Link(name, status, "; ".join([*problems, unfinished][:3]).rstrip("; "), fix=FIX)
    linked = sum(PREVIOUS in entry for entry in recorded.numbered.values())
    meaning = f"{len(recorded.entries)} promotions, the last of version {champion}"
    meaning += "" if linked == len(recorded.entries) else f", {len(recorded.entries) - linked} of an earlier Plumbline"
    return Link(name, "verified", f"{meaning}{copied}")


def _descriptions(registry: Registry, numbers: Iterable[str]) -> dict[str, str]:
    """The descriptions of versions by number, and that of the registered model under an empty key."""
    store = details_reader(registry.reader)
    shown = {number: store.version(registry.name, number) for number in numbers}
    texts = {number: details.description for number, details in shown.items() if details is not None}
    return {**texts, "": store.description(registry.name)}


def newest_promotion(case: Case) -> tuple[int, str] | None:
    """Number and digest of the newest entry of the history; None without one, or where MLflow does not answer."""
    entries = known_promotions(case)
    number = max(entries, default=None)
    return None if number is None else (number, entry_digest(entries[number]))


def known_promotions(case: Case) -> dict[int, dict[str, Any]]:
    """The entries of the registry's history by number; empty where there is no registry."""
    with suppress(TrackingError, ValueError):
        model = case.registry.model() if case.registry else None
        if model is not None:
            return dict(read_history([model.tags]).numbered)
    return {}


def _against_the_versions(
    recorded: PromotionHistory, versions: Mapping[str, ModelVersion], champion: str
) -> Iterator[str]:
    """Entries that contradict the versions that they name."""
    signed: dict[str, set[tuple[str | None, str | None]]] = {}
    for entry in recorded.entries:
        signed.setdefault(entry.version, set()).add((entry.who, entry.why))
    if recorded.entries and recorded.entries[-1].version == champion and recorded.pending is None:
        signed[champion] = {(recorded.entries[-1].who, recorded.entries[-1].why)}
    for number, pairs in signed.items():
        tags = versions[number].tags if number in versions else {}
        if PROMOTED_BY in tags and (tags[PROMOTED_BY], tags.get(REASON)) not in pairs:
            yield f"who or why of version {number} differ between its tags and the history"


def _against_the_decision(
    case: Case, recorded: PromotionHistory, versions: Mapping[str, ModelVersion]
) -> Iterator[str]:
    """A decision to promote this model that the history does not have."""
    decision = decision_of(case)
    if decision.get("decision") != "promoted" or decision.get("model") != case.identity:
        return
    own = {number for number, version in versions.items() if version.model == case.identity}
    why = " ".join(str(decision.get("why")).split())
    if not any(
        (entry.who, entry.why) == (MACHINE, why) and (entry.version in own or entry.model == case.identity)
        for entry in recorded.entries
    ):
        yield "promotion.json promoted this model, the history has no such promotion"
