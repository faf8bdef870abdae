"""Sites with fewer tokens than channels: usually experts that a router seldom chooses.

The Hessian of a site is a sum of one outer product per token, so with fewer tokens than channels it does not have full
rank. Some directions of the input were never observed, and a method that solves with the Hessian (GPTQ, AdaRound)
decides about them by damping alone. Fewer tokens than this limit are too few; more are not necessarily enough.
(GPTQModel falls back to rounding where a module received under 0.5 % of the tokens, whatever its width.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from plumbline.base_model.parts import AUDIO, VISION, kind_of

TOWERS = (VISION, AUDIO)
"""Kinds of layers that text never reaches."""


def starved_sites(header: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Sites with fewer tokens than channels, by name; unreached modules have 0 tokens.

    Args:
        header: header.json of activation_stats.

    Returns:
        {"tokens": ..., "width": ...} by site; without "width" for an unreached layer, where it is unknown.
    """
    starved = {
        name: {"tokens": int(site["tokens"]), "width": int(site["width"])}
        for name, site in header["sites"].items()
        if site["tokens"] < site["width"] and ":" not in name  # outputs, keys and values have no Hessian
    }
    starved |= {name: {"tokens": 0} for name in header["unreached"] if kind_of(name) not in TOWERS}
    return {name: starved[name] for name in sorted(starved)}


def starved_layers(header: Mapping[str, Any], layers: Collection[str]) -> dict[str, dict[str, int]]:
    """The entries of `starved_sites` by layer, for these layers."""
    sites = starved_sites(header)
    by_layer = {
        member: sites[name] for name in sites for member in header["sites"].get(name, {"members": [name]})["members"]
    }
    return {name: by_layer[name] for name in sorted(by_layer) if name in layers}


def sentence(sites: Mapping[str, Mapping[str, int]]) -> str:
    """A sentence that names the starved sites with the fewest tokens."""
    shown = [
        f"{name} (none)" if not site["tokens"] else f"{name} ({site['tokens']} tokens, {site['width']} channels)"
        for name, site in sorted(sites.items(), key=lambda item: (item[1]["tokens"], item[0]))
    ]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"{len(shown)} sites saw fewer tokens than they have channels: {', '.join(shown[:3])}{more}"
