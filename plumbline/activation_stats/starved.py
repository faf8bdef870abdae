"""Sites that saw too few tokens to be described: as a rule experts that a router seldom chooses.

The Hessian of a site is a sum of one outer product per token, so with fewer tokens than channels it has no full rank:
some directions of the input were never seen, and a method that solves with it (GPTQ, AdaRound) decides about them by
damping alone. That is the limit here; it says that there are too few tokens, not that more would be enough.
(GPTQModel falls back to rounding where a module saw under 0.5 % of the tokens, whatever its width.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def starved_sites(header: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Sites with fewer tokens than channels, the unreached with none, by name.

    Args:
        header: header.json of activation_stats.

    Returns:
        {"tokens": ..., "width": ...} by site; of an unreached layer the width is not known and left out.
    """
    found = {
        name: {"tokens": int(site["tokens"]), "width": int(site["width"])}
        for name, site in header["sites"].items()
        if site["tokens"] < site["width"] and not name.endswith(":output")  # of an output there is no Hessian
    }
    found |= {name: {"tokens": 0} for name in header["unreached"]}
    return {name: found[name] for name in sorted(found)}


def starved_layers(header: Mapping[str, Any], layers: Collection[str]) -> dict[str, dict[str, int]]:
    """`starved_sites` by layer, of these layers."""
    sites = starved_sites(header)
    by_layer = {
        member: sites[name] for name in sites for member in header["sites"].get(name, {"members": [name]})["members"]
    }
    return {name: by_layer[name] for name in sorted(by_layer) if name in layers}


def sentence(sites: Mapping[str, Mapping[str, int]]) -> str:
    """For people: which, and how few."""
    shown = [
        f"{name} (none)" if not site["tokens"] else f"{name} ({site['tokens']} tokens, {site['width']} channels)"
        for name, site in sorted(sites.items(), key=lambda item: (item[1]["tokens"], item[0]))
    ]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"{len(shown)} sites saw fewer tokens than they have channels: {', '.join(shown[:3])}{more}"
