"""The descriptions in MLflow: a figure or a promotion that they state is that of the record."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from plumbline.provenance.link import Case, dig
from plumbline.tracking.promotion import read_history
from plumbline.tracking.registry import Registry
from plumbline.tracking.renumbered import renumbered
from plumbline.tracking.text import OURS, history_lines

NUMBER = r"([-+]?[\d.]+(?:e[-+]?\d+)?)"
FIGURES = {
    "kl_mean": rf"KL to the base model {NUMBER} nats per token",
    "perplexity_quantized": rf"(?:^|; )perplexity {NUMBER}",
    "perplexity_base": rf"that of the base model {NUMBER}",
    "top1_agreement": rf"same next token {NUMBER} of the time",
    "weights_bytes": rf"(?:^|; )weights {NUMBER} (B|kB|MB|GB|TB)",
}
"""Metric -> how `figures_text` states it."""
UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
NAMES = {
    "scheme": (r"quantized under `([^`]*)`", ("scheme", "name")),
    "calibration choice": (r"[Cc]alibrated by the choice `([^`]*)`", ("calibration_set", "choice", "name")),
    "calibration set": (r"\(set ([0-9a-f]*)\)", ("calibration_set", "digest")),
    "base model": (r"^\*\*(.*?)\*\*", ("base_model", "name")),
    "digest of the base model": (r"\(digest ([0-9a-f]*)\)", ("base_model", "digest")),
}
"""What else a description states -> how, and the keys of the value in the model's record."""
SHARE = re.compile(r"`: (\d+) % of the weights in matrices")
PROMOTED = re.compile(r"^\* (?:\d{4}-\d\d-\d\d \d\d:\d\d UTC|at a time that is not on record): .*$", re.MULTILINE)
NUMBERED = re.compile(r"\bversion (?:lost:)?\d+")


def wrong_text(case: Case, text: str, metrics: Mapping[str, float]) -> Iterator[str]:
    """What a description of the model, or of its run, states otherwise than the record and the metrics.

    What somebody wrote in other words is not compared.
    """
    own = text.partition(OURS)[0]
    for name, pattern in FIGURES.items():
        if name in metrics and not all(map(_rounds_to(metrics[name]), re.findall(pattern, own, re.MULTILINE))):
            yield name
    for name, (pattern, keys) in NAMES.items():
        value = dig(case.record, *keys)
        if isinstance(value, str) and not all(_names(stated, value) for stated in re.findall(pattern, own)):
            yield name
    share = dig(case.record, "coverage", "share")
    if isinstance(share, int | float) and any(stated != f"{100 * share:.0f}" for stated in SHARE.findall(own)):
        yield "share of quantized weights"


def _rounds_to(value: float) -> Any:
    """A predicate: whether a stated number, alone or with its unit, is the value with fewer digits."""

    def agrees(stated: str | tuple[str, str]) -> bool:
        text, unit = stated if isinstance(stated, tuple) else (stated, "B")
        text = text.rstrip(".")
        digits = len(re.sub(r"\D", "", text.partition("e")[0]).lstrip("0")) or 1
        try:
            rounded = float(f"{value / UNITS[unit]:.{digits - 1}e}")
            return isfinite(rounded) and abs(rounded - float(text)) <= 1e-9 * abs(rounded)
        except ValueError:
            return False

    return agrees


def _names(stated: str, value: str) -> bool:
    """Whether a text is the value, or the first characters of a digest."""
    return stated == value or (len(stated) >= 12 and value.startswith(stated))


def wrong_promotions(registry: Registry, texts: Mapping[str, str]) -> Iterator[str]:
    """Promotions in descriptions that the history does not have; an interrupted promotion may have left one out.

    Args:
        texts: descriptions by version; that of the registered model under an empty key.
    """
    model, versions = registry.model(), registry.versions()
    tags: list[Mapping[str, str]] = [model.tags, *(version.tags for version in versions)] if model else []
    recorded = list(read_history(tags, model.aliases.get("champion", "") if model else "").entries)
    today = renumbered(recorded, versions)
    for number, text in texts.items():
        listed, known = PROMOTED.findall(text.partition(OURS)[2]), history_lines(number, today)
        if today != recorded:  # versions were deleted or registered anew: lines may have the numbers of any time
            listed = [NUMBERED.sub("version", line) for line in listed]
            every = [*history_lines("", recorded), *known]
            every += [line for entry in recorded for line in history_lines(entry.from_version or "", [entry])]
            known = [NUMBERED.sub("version", line) for line in every]
        if not set(listed) <= set(known):
            yield f"the description of {f'version {number}' if number else 'the registered model'} has another history"
