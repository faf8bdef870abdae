"""The history of champions: when, which choice, which figures, which data, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json
from plumbline.provenance.registry import NoRegistry, asking
from plumbline.provenance.text import printable, wrapped
from plumbline.tracking.promotion import ALIAS, ENTRY, PROMOTED_BY, REASON
from plumbline.tracking.store import mlflow_error

PROMOTION = re.compile(re.escape(ENTRY) + r"(\d+)")
"""Tags of the registered model, or of its versions: an append-only list of promotions, a JSON object each."""
FIGURES = ("kl_mean", "kl_p99", "perplexity_base", "perplexity_quantized", "top1_agreement", "weights_bytes")
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Promotion:
    """A champion, from when it became one."""

    kind: str
    """`promoted` or `rolled back`."""
    version: str
    from_version: str
    """The champion before; empty if there was none, or nobody recorded it."""
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
    promotions: tuple[Promotion, ...]
    champion: str
    """The version that carries the alias now; empty if none does."""
    remarks: tuple[str, ...] = ()
    """What in the history cannot be read, or does not fit."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def champions(root: Path) -> Champions:
    """The promotions that MLflow has on record; of a champion from before they were recorded, what is known.

    Raises:
        NoRegistry: there is no registry, or it does not answer.
    """
    with asking(root) as (tracking, client):
        name = tracking.registered_model
        try:
            model = client.get_registered_model(name)
        except mlflow_error() as error:
            said = f"MLflow at {tracking.uri} has no model {name!r}"
            raise NoRegistry(f"{said}: `plumbline run` registers one") from error
        found = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'", max_results=10_000)}
        champion = str(model.aliases.get(ALIAS, ""))
        entries, remarks = _entries([model.tags, *(version.tags for version in found.values())])
        if champion and (not entries or str(entries[-1].get("version")) != champion):
            if entries:
                last = entries[-1].get("version")
                remarks.append(f"the last promotion on record is of version {last}, but the alias names {champion}")
            entries.append({"version": champion, **_before_records(root, found.get(champion))})
        promotions = [_promotion(client, entry, found) for entry in entries]
    return Champions(name, tuple(reversed(promotions)), champion, tuple(remarks))


def _entries(tags: list[Mapping[str, str]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The promotions in the order of their numbers, and what is wrong with them."""
    numbered: dict[int, dict[str, Any]] = {}
    remarks: list[str] = []
    for each in tags:
        for key, value in each.items():
            match = PROMOTION.fullmatch(key)
            if match is None:
                continue
            try:
                entry = json.loads(value)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict) or "version" not in entry:
                remarks.append(f"{key} is not a record of a promotion: {str(value)[:60]!r}")
            elif numbered.setdefault(int(match[1]), entry) != entry:
                remarks.append(f"{key} says two different things")
    if numbered and sorted(numbered) != list(range(min(numbered), max(numbered) + 1)):
        remarks.append(f"a promotion was removed: the numbers on record are {sorted(numbered)}")
    return [numbered[number] for number in sorted(numbered)], remarks


def _before_records(root: Path, version: Any) -> dict[str, Any]:
    """What the promotion record of the workspace says of a champion that no tag speaks of."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = read_json(root / "data/deployed_model/promotion.json")
        if version is not None and record["pair"] == version.tags.get("pair"):
            return {"why": record["why"]}
    return {}


def _promotion(client: Any, entry: Mapping[str, Any], found: Mapping[str, Any]) -> Promotion:
    number = str(entry["version"])
    version = found.get(number)
    tags = dict(version.tags) if version is not None else {}
    metrics: dict[str, float] = {}
    params: dict[str, str] = {}
    if version is not None and version.run_id:
        with suppress(mlflow_error()):
            run = client.get_run(version.run_id)
            metrics, params = dict(run.data.metrics), dict(run.data.params)
    data = {"digest": tags.get("hash.calibration_set", ""), "dvc": tags.get("calibration.md5", "")}
    data |= {key: f"{metrics[f'count/{key}']:.0f}" for key in ("samples", "tokens") if f"count/{key}" in metrics}
    when = _time(entry.get("when"))
    if when == NOT_RECORDED and version is not None:
        when = f"registered {_time(version.creation_timestamp)}"
    return Promotion(
        kind=str(entry.get("kind") or "promoted"),
        version=number,
        from_version=str(entry.get("from_version") or ""),
        when=when,
        who=str(entry.get("who") or tags.get(PROMOTED_BY) or NOT_RECORDED),
        why=str(entry.get("why") or tags.get(REASON) or NOT_RECORDED),
        pair=tags.get("pair", "" if version is not None else "a version that was deleted"),
        choice={k.removeprefix("choice."): v for k, v in params.items() if k.startswith("choice.")},
        scheme={k.removeprefix("scheme."): v for k, v in params.items() if k.startswith("scheme.")},
        figures={figure: metrics[figure] for figure in FIGURES if figure in metrics},
        data={key: value for key, value in data.items() if value},
        run_id=str(version.run_id or "") if version is not None else "",
        model_md5=tags.get("model.md5", ""),
    )


def _time(when: Any) -> str:
    """A time on record as `2026-11-25 19:21 UTC`; milliseconds since 1970, or ISO 8601."""
    with suppress(ValueError, OverflowError, OSError, TypeError):
        if isinstance(when, int | float):
            moment = datetime.fromtimestamp(when / 1000 if when > 1e11 else when, UTC)
        else:
            moment = datetime.fromisoformat(when)
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.strftime("%Y-%m-%d %H:%M UTC")
    return NOT_RECORDED if not when else str(when)[:40]


def render_log(history: Champions) -> str:
    """A paragraph per promotion, latest first."""
    lines = [f"models:/{history.model}@{ALIAS}: {len(history.promotions)} on record"]
    for each in history.promotions:
        before = f", before it version {each.from_version}" if each.from_version else ""
        now = "  ← champion" if each.version == history.champion and each is history.promotions[0] else ""
        lines += ["", f"{each.when}  {each.kind}: version {each.version}, {each.pair}{before}{now}"]
        lines += wrapped(f"    who   {each.who}", " " * 10)
        lines += wrapped(f"    why   {each.why}", " " * 10)
        lines += wrapped(f"    data  {_data(each)}", " " * 10)
        if each.figures:
            lines += wrapped(f"    gave  {_figures(each.figures)}", " " * 10)
    if history.remarks:
        lines += ["", *(line for remark in history.remarks for line in wrapped(f"note: {remark}", "      "))]
    if not history.promotions:
        lines.append("no champion yet: `plumbline run` makes the best choice of the deployed scheme one")
    return "\n".join(printable(line) for line in lines)


def _data(each: Promotion) -> str:
    name, strategy = each.choice.get("name", "?"), each.choice.get("strategy", "?")
    counts = f"{each.data.get('samples', '?')} samples, {each.data.get('tokens', '?')} tokens"
    return f"{name} ({strategy}): {counts}, set {each.data.get('digest', '?')[:16]}"


def _figures(figures: Mapping[str, float]) -> str:
    parts = []
    if "kl_mean" in figures:
        parts.append(f"KL {figures['kl_mean']:.3g} nats per token")
    if {"perplexity_base", "perplexity_quantized"} <= figures.keys():
        parts.append(f"perplexity {figures['perplexity_quantized']:.4g} (base {figures['perplexity_base']:.4g})")
    if "top1_agreement" in figures:
        parts.append(f"top-1 agreement {figures['top1_agreement']:.1%}")
    if "weights_bytes" in figures:
        parts.append(f"{figures['weights_bytes']:,.0f} bytes")
    return ", ".join(parts)
