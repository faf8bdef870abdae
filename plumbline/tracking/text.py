"""What MLflow says of a run, a version and its promotions, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from plumbline.amounts import size
from plumbline.tracking.promotion_entry import Promotion
from plumbline.tracking.samples import SAMPLES

DAGSTER = "http://127.0.0.1:3000"
"""Where `plumbline ui` serves Dagster."""
FIGURES = {
    "perplexity_quantized": "perplexity {:.4g}",
    "perplexity_base": "that of the base model {:.4g}",
    "top1_agreement": "same next token {:.3f} of the time",
}
MODELS = (
    "Every quantized model that was evaluated, one version each. The alias `champion` names the one to deploy; its "
    "version says what it is, and why it was promoted."
)
"""Description of the registered model."""
LATEST = 20
"""Promotions in a description; `plumbline log` has all."""
OURS = "## Promotions"
"""Heading of the history in a version's description: what comes after it is written anew, the rest is kept."""


def about(base_model: Mapping[str, Any], scheme: str, calibration: str) -> str:
    """Base model, scheme and calibration choice in a sentence."""
    revision = f" at {base_model['revision']}" if base_model.get("revision") else ""
    base = f"**{base_model['name']}**{revision}" if base_model else "A model"
    return f"{base}, quantized under `{scheme}`, calibrated by the choice `{calibration}`."


def samples_text(calibration: str, *, in_artifacts: bool) -> str:
    """Where the samples of a run's calibration set are shown."""
    if in_artifacts:
        return f"The samples that it was calibrated with are in the tab Artifacts: `{SAMPLES}`."
    return f"`plumbline show {calibration}` shows the samples that it was calibrated with."


def figures_text(metrics: Mapping[str, float], interval: str = "") -> str:
    """The figures that decide, in a line; empty without any.

    Args:
        interval: of the KL, in words.
    """
    texts = {"kl_mean": "KL to the base model {:.4g} nats per token" + interval, **FIGURES}
    shown = [text.format(metrics[name]) for name, text in texts.items() if name in metrics]
    if "weights_bytes" in metrics:
        shown.append(f"weights {size(metrics['weights_bytes'])}")
    return "; ".join(shown) + "." if shown else ""


def origin_text(dagster_run_id: str) -> str:
    """A link to the run in Dagster; empty for a run that Dagster does not know."""
    if not re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}", dagster_run_id):
        return ""
    return f"Made by [this run in Dagster]({DAGSTER}/runs/{dagster_run_id}), which `plumbline ui` serves."


def with_history(text: str, version: str, entries: Iterable[Promotion]) -> str:
    """A description with the promotions of a version, the latest first, in place of an earlier list.

    Args:
        version: whose promotions, and those that replaced it; empty: all.
        entries: every promotion on record, oldest first.
    """
    lines = history_lines(version, entries)
    kept = text.partition(OURS)[0].rstrip()
    listed = "\n".join(reversed(lines[-LATEST:]))
    return "\n\n".join([kept, OURS, listed]).lstrip() if lines else kept


def history_lines(version: str, entries: Iterable[Promotion]) -> list[str]:
    """A line for every promotion of a version, and for those that replaced it, oldest first; empty version: all."""
    return [
        _line(entry, version or entry.version)
        for entry in entries
        if not version or version in (entry.version, entry.from_version)
    ]


def _line(entry: Promotion, version: str) -> str:
    when = entry.when[:16].replace("T", " ") + " UTC" if entry.when else "at a time that is not on record"
    if entry.version == version:
        instead = f" in place of version {entry.from_version}" if entry.from_version else ""
        return f"* {when}: version {version} {entry.kind}{instead} by {entry.who}: {entry.why}"
    return f"* {when}: replaced by version {entry.version} ({entry.kind} by {entry.who}): {entry.why}"
