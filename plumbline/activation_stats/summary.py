"""The summary of activation_stats that the UI shows, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.activation_stats.starved import starved_sites
from plumbline.artifact import read_json


def summary(folder: Path) -> dict[str, Any]:
    """A sentence, samples, tokens, sites, layers, unreached and starved sites, the largest magnitude with its site and
    sample."""
    header = read_json(folder / "header.json")
    layers = sum(len(site["members"]) for site in header["sites"].values())
    return {
        "sentence": f"{header['samples']} samples of {header['tokens']} tokens went through {layers} layers with "
        f"{len(header['sites'])} distinct inputs.",
        "samples": header["samples"],
        "tokens": header["tokens"],
        "sites": len(header["sites"]),
        "layers": layers,
        "unreached": header["unreached"],
        "starved": starved_sites(header),
        **_largest(folder, header),
    }


def _largest(folder: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The largest magnitude of all sites; ties go to the first site by name, then the first sample."""
    from safetensors import safe_open

    largest: dict[str, Any] = {}
    with safe_open(folder / "stats.safetensors", framework="pt") as file:  # NumPy has no bfloat16
        for site in sorted(header["sites"]):
            values = file.get_tensor(f"{site}:top_values").float()[:, 0]  # the largest of each sample comes first
            sample = int(values.abs().argmax())
            value = float(values[sample])
            if not largest or abs(value) > abs(largest["largest_value"]):
                largest = {
                    "largest_site": site,
                    "largest_value": value,
                    "largest_sample": header["sample_ids"][sample],
                }
    return largest | ({"largest_value": round(largest["largest_value"], 6)} if largest else {})
