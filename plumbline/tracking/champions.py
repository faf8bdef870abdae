"""The history of champions: when, which choice, which figures, which data, and why."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plumbline.tracking.model_version import CALIBRATION, ModelVersion
from plumbline.tracking.promotion import PROMOTED_BY, REASON, Promotion, read_history
from plumbline.tracking.reading import RunData
from plumbline.tracking.registry import ALIAS, Registry, open_registry
from plumbline.tracking.renumbered import renumbered
from plumbline.tracking.store import TrackingError

FIGURES = ("kl_mean", "kl_p99", "perplexity_base", "perplexity_quantized", "top1_agreement", "weights_bytes")
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class ChampionRecord:
    """A champion, as of its promotion."""

    kind: str
    """`promoted` or `rolled back`."""
    version: str
    from_version: str
    """The previous champion; empty if there was none, or it was not recorded."""
    when: str
    """UTC."""
    who: str
    why: str
    pair: str = ""
    choice: dict[str, str] = field(default_factory=dict)
    """Every parameter of the calibration choice."""
    scheme: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    """The calibration set: its digest, its DVC hash, its counts."""
    run_id: str = ""
    model_md5: str = ""


@dataclass(frozen=True)
class Champions:
    """The history of a registered model's champions, latest first."""

    model: str
    promotions: tuple[ChampionRecord, ...]
    champion: str
    """The version that has the alias now; empty if none has."""
    remarks: tuple[str, ...] = ()
    """Entries of the history that cannot be read or contradict each other."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def champions(root: Path) -> Champions:
    """Return the promotions that MLflow has on record.

    A champion that was promoted before promotions were recorded is listed with what is known of it.

    Raises:
        TrackingError: there is no registry, or it does not answer.
    """
    registry = open_registry(root, read_only=True)
    model = registry.model()
    if model is None:
        raise TrackingError(
            f"MLflow at {registry.tracking.uri} has no model {registry.name!r}: `plumbline run` registers one"
        )
    versions = {version.version: version for version in registry.versions()}
    champion = model.aliases.get(ALIAS, "")
    recorded = read_history([model.tags, *(version.tags for version in versions.values())], champion)
    entries, remarks = list(recorded.entries), list(recorded.remarks)
    if champion and (not entries or entries[-1].version != champion):
        if entries:
            last = entries[-1].version
            remarks.append(f"the last promotion on record is of version {last}, but the alias names {champion}")
        why = _reason_of_decision(root, versions.get(champion))
        entries.append(Promotion("", champion, None, "", why, "promoted"))
    entries = renumbered(entries, list(versions.values()))
    records = [_champion_record(registry, entry, versions.get(entry.version)) for entry in reversed(entries)]
    return Champions(registry.name, tuple(records), champion, tuple(remarks))


def _reason_of_decision(root: Path, version: ModelVersion | None) -> str:
    """The reason in promotion.json, for a champion whose promotion no tag records."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        decision = json.loads((root / "data/deployed_model/promotion.json").read_text(encoding="utf-8"))
        if version is not None and decision["pair"] == version.tags.get("pair"):
            return str(decision["why"])
    return ""


def _champion_record(registry: Registry, entry: Promotion, version: ModelVersion | None) -> ChampionRecord:
    tags = version.tags if version else {}
    run = RunData()
    if version and version.run_id:
        with suppress(TrackingError):
            run = registry.run(version.run_id)
    data = {"digest": tags.get("hash.calibration_set", ""), "dvc": tags.get(CALIBRATION, "")}
    for name in ("samples", "tokens"):
        if f"count/{name}" in run.metrics:
            data[name] = f"{run.metrics[f'count/{name}']:.0f}"
    when = _time(entry.when)
    if when == NOT_RECORDED and version:
        when = f"registered {_time(datetime.fromtimestamp(version.created / 1000, UTC).isoformat())}"
    return ChampionRecord(
        kind=entry.kind,
        version=entry.version,
        from_version=entry.from_version or "",
        when=when,
        who=entry.who or tags.get(PROMOTED_BY) or NOT_RECORDED,
        why=entry.why or tags.get(REASON) or NOT_RECORDED,
        pair=tags.get("pair", "" if version else "a version that was deleted"),
        choice=_section(run, "choice."),
        scheme=_section(run, "scheme."),
        figures={figure: run.metrics[figure] for figure in FIGURES if figure in run.metrics},
        data={key: value for key, value in data.items() if value},
        run_id=version.run_id if version else "",
        model_md5=version.model if version else "",
    )


def _section(run: RunData, prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in run.params.items() if name.startswith(prefix)}


def _time(when: str) -> str:
    """Format an ISO 8601 time as `2026-11-25 19:21 UTC`; any other text is returned unchanged."""
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(when)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.strftime("%Y-%m-%d %H:%M UTC")
    return when[:40] or NOT_RECORDED
