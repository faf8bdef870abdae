"""The samples that set the ranges: the largest magnitude at every layer's input, and its sample."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from plumbline.activation_stats.store import HEADER, TENSORS
from plumbline.artifact import read_json
from plumbline.calibration_report.wording import percent
from plumbline.calibration_set.reader import read_calibration_set, read_manifest


def read_extremes(statistics: Path, calibration_set: Path) -> list[dict[str, Any]]:
    """The largest magnitude at every site (the input of one layer, or of several that share it).

    Args:
        statistics: an activation_stats artifact; only the few largest values of each sample are read.
        calibration_set: the calibration_set artifact that it was collected over.

    Returns:
        Per site, in the model's order: `site`, `members`, `value` with its sign, `sample_id`, `documents`, `domain`,
        `position` (token of the sample), `channel`, `next`: the largest magnitude of any other sample as a share of
        this one (None: there is no other).

    Raises:
        ValueError: the statistics are of another set.
    """
    header, manifest = read_json(statistics / HEADER), read_manifest(calibration_set)
    if header["calibration_set"] != manifest["digest"]:
        raise ValueError(
            f"activation statistics of {statistics.name} are of a set with digest {header['calibration_set']}, the "
            f"calibration set now has {manifest['digest']}; run `plumbline run` to collect them again"
        )
    rows = read_calibration_set(calibration_set, ["sample_id", "doc_ids", "domain"]).to_pylist()
    samples = {row["sample_id"]: row for row in rows}
    extremes = []
    with safe_open(statistics / TENSORS, framework="pt") as file:
        for name in sorted(header["sites"], key=in_order):
            # (samples, top_k), each sample's largest first
            values = file.get_tensor(f"{name}:top_values").float().numpy()[:, 0]
            magnitudes = np.abs(values)
            first = int(magnitudes.argmax())  # of equals, the lowest sample id
            others = np.delete(magnitudes, first)
            sample = samples[header["sample_ids"][first]]
            extremes.append(
                {
                    "site": name,
                    "members": header["sites"][name]["members"],
                    "value": float(values[first]),
                    "sample_id": sample["sample_id"],
                    "documents": sample["doc_ids"] or [],
                    "domain": sample["domain"],
                    "position": int(file.get_tensor(f"{name}:top_positions")[first, 0]),
                    "channel": int(file.get_tensor(f"{name}:top_channels")[first, 0]),
                    "next": float(others.max() / magnitudes[first]) if len(others) and magnitudes[first] else None,
                }
            )
    return extremes


def leading_samples(extremes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples that set the largest magnitude anywhere, those of the most sites first.

    Returns:
        Per sample `sample_id`, `documents`, `domain`, `sites` (how many), `next`: the lowest of those sites (None: no
        other sample), and `where`: the site that has it.
    """
    count = Counter(row["sample_id"] for row in extremes)
    leading = []
    for sample_id, sites in sorted(count.items(), key=lambda item: (-item[1], item[0])):
        rows = [row for row in extremes if row["sample_id"] == sample_id]
        alone = min(rows, key=_next)
        about = {key: rows[0][key] for key in ("sample_id", "documents", "domain")}
        leading.append({**about, "sites": sites, "next": alone["next"], "where": alone["site"]})
    return leading


def sentence(choice: str, extremes: list[dict[str, Any]], samples: int) -> str:
    """A sentence on how many samples set the ranges, and how much a range depends on a single one."""
    leading = leading_samples(extremes)
    text = (
        f"{choice}: the largest values at {len(extremes)} layer inputs come from {len(leading)} of {samples} samples, "
        f"{leading[0]['sites']} of them from one"
    )
    alone = min(extremes, key=_next)
    if alone["next"] is not None:
        text += f"; without its leading sample no range would shrink by more than {percent(1 - alone['next'])}"
        text += f" ({alone['site']})"
    return text + "."


def _next(row: Mapping[str, Any]) -> float:
    return 1.0 if row["next"] is None else float(row["next"])


def in_order(site: str) -> list[Any]:
    """Sort key that puts layer 2 before layer 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", site)]


def summary(extremes: Mapping[str, list[dict[str, Any]]], samples: Mapping[str, int]) -> list[str]:
    """A sentence per choice."""
    return [sentence(choice, rows, samples[choice]) for choice, rows in extremes.items()]
