"""ActivationStats on disk: stats.safetensors beside header.json, the same bytes for the same statistics.

Stored small and exact: of the symmetric Hessian the upper triangle, row by row; of the histogram the occupied buckets
in the narrowest integer that holds the largest count; extremes in the dtype of the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from assets.activation_stats.histogram import Histogram
from assets.activation_stats.params import StatisticsParams
from assets.activation_stats.sketch import ActivationStats, SiteStats
from assets.artifact import read_json, write_json

FORMAT = 1
TENSORS, HEADER = "stats.safetensors", "header.json"
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def save(stats: ActivationStats, folder: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Write both files into an existing folder.

    Args:
        provenance: what the statistics do not know themselves, added to the header: name and revision of the base
            model (joining its digest), digest of the calibration set.

    Returns:
        The header.
    """
    tensors: dict[str, Tensor] = {}
    sites: dict[str, Any] = {}
    for name, site in stats.sites.items():
        exact = getattr(torch, site.histogram.dtype)
        rows = {
            "sample_tokens": site.sample_tokens,
            "sum": site.sum,
            "sum_abs": site.sum_abs,
            "sum_sq": site.sum_sq,
            "histogram": _narrow(site.histogram.counts),
            "sample_min": site.sample_min.to(exact),
            "sample_max": site.sample_max.to(exact),
            "top_values": site.top_values.to(exact),
            "top_positions": site.top_positions,
            "top_channels": site.top_channels,
        }
        if site.hessian is not None:
            rows["hessian"] = site.hessian[_upper(site.width)]
        tensors |= {f"{name}:{what}": tensor.contiguous() for what, tensor in rows.items()}
        sites[name] = {
            "members": list(site.members),
            "width": site.width,
            "tokens": site.tokens,
            "samples": site.samples,
            "dtype": site.histogram.dtype,
            "first_bucket": site.histogram.first,
        }
    header = {
        **provenance,
        "format": FORMAT,
        "base_model": {**provenance.get("base_model", {}), "digest": stats.base_model_digest},
        "fingerprint": stats.fingerprint,
        "settings": stats.settings.model_dump(mode="json"),
        "samples": len(stats.sample_ids),
        "tokens": int(stats.sample_tokens.sum()),
        "sample_ids": list(stats.sample_ids),
        "sample_tokens": stats.sample_tokens.tolist(),
        "sites": sites,
        "unreached": list(stats.unreached),
    }
    save_file(tensors, folder / TENSORS)
    write_json(folder / HEADER, header)
    return header


def load(folder: Path) -> ActivationStats:
    """What `save` wrote, equal bit by bit.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: another format, or the two files do not belong together.
    """
    for name in (HEADER, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder.name}: no {name}; restore the statistics with `dvc checkout`")
    header = read_json(folder / HEADER)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{folder.name}/{HEADER}: found format {header.get('format')}, this version reads {FORMAT}; collect anew"
        )
    settings = StatisticsParams.model_validate(header["settings"])
    try:
        tensors = load_file(folder / TENSORS)
        sites = {name: _site(name, row, settings, tensors) for name, row in header["sites"].items()}
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{folder.name}: {TENSORS} is damaged or not the one that {HEADER} describes ({error}); restore both with "
            "`dvc checkout`"
        ) from error
    return ActivationStats(
        header["base_model"]["digest"],
        header["fingerprint"],
        settings,
        tuple(header["sample_ids"]),
        torch.tensor(header["sample_tokens"], dtype=torch.int64),
        sites,
        tuple(header["unreached"]),
    )


def _site(name: str, row: dict[str, Any], settings: StatisticsParams, tensors: Mapping[str, Tensor]) -> SiteStats:
    def read(what: str) -> Tensor:
        return tensors[f"{name}:{what}"]

    hessian = None
    if settings.hessian:
        upper = _upper(row["width"])
        hessian = torch.zeros(row["width"], row["width"], dtype=torch.float64)
        hessian[upper] = read("hessian")
        hessian.T[upper] = read("hessian")
    return SiteStats(
        members=tuple(row["members"]),
        sample_tokens=read("sample_tokens"),
        sum=read("sum"),
        sum_abs=read("sum_abs"),
        sum_sq=read("sum_sq"),
        histogram=Histogram(read("histogram").long(), row["first_bucket"], settings.mantissa_bits, row["dtype"]),
        hessian=hessian,
        sample_min=read("sample_min").float(),
        sample_max=read("sample_max").float(),
        top_values=read("top_values").float(),
        top_positions=read("top_positions"),
        top_channels=read("top_channels"),
    )


def _upper(width: int) -> Tensor:
    """(width, width) bool: the diagonal and what lies right of it."""
    return torch.ones(width, width, dtype=torch.bool).triu()


def _narrow(counts: Tensor) -> Tensor:
    largest = int(counts.max()) if counts.numel() else 0
    return counts.to(next(dtype for dtype in INTEGERS if largest <= torch.iinfo(dtype).max))
