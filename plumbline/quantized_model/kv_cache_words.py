"""The cache of keys and values in words: what a scheme says of it, and which layers of a model it leaves out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json

SCALES = {"tensor": "one scale per layer", "attn_head": "one scale per head"}
RANGES = {
    "minmax": "for the whole range in the calibration set",
    "percentile": "for the range up to the {percentile:g} % quantile of the calibration set",
    "unit": "of 1, without calibration",
}


def in_words(kv_cache: Mapping[str, Any]) -> str:
    """The `kv_cache` of a scheme's record, in words."""
    return (
        f"keys and values cached in FP8 (E4M3), {SCALES[kv_cache['strategy']]} each, "
        f"{RANGES[kv_cache['range']].format(**kv_cache)}"
    )


def card_lines(kv_cache: Mapping[str, Any], cache: Mapping[str, Any]) -> list[str]:
    """Lines of the model card.

    Args:
        kv_cache: of the scheme's record.
        cache: of calibration.json's `coverage`.
    """
    text = in_words(kv_cache)
    lines = [f"{text[0].upper()}{text[1:]}: {cache['modules']} attention layers."]
    by_window: dict[int, list[str]] = defaultdict(list)
    for name, window in cache["windows"].items():
        by_window[window].append(name)
    lines += [
        f"{_some(names)} cache a sliding window of {window} tokens; the scales cover every token that passes through."
        for window, names in sorted(by_window.items())
    ]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in cache["without"].items():
        by_reason[reason].append(name)
    return lines + [f"Without scales: {_some(names)} ({reason})." for reason, names in by_reason.items()]


def served_with(folder: Path) -> str:
    """What `vllm serve FOLDER` needs beside the folder: " --kv-cache-dtype fp8" where it has scales of its cache."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    return " --kv-cache-dtype fp8" if config.get("quantization_config", {}).get("kv_cache_scheme") else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
