"""ActivationStats on disk: stats.safetensors and header.json, the same bytes for the same statistics.

The files are small and exact. They hold the upper triangle of the symmetric Hessian, row by row; the occupied buckets
of the histogram in the narrowest integer that holds the largest count; and extremes in the dtype of the activations.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plumbline.activation_stats.kernel import mirrored
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.sketch import ActivationStats, SiteStats, counted
from plumbline.activation_stats.tensor_file import TensorFile, join
from plumbline.artifact import read_json, write_json
from plumbline.base_model.tensor_reader import TensorReader
from plumbline.histogram import Histogram

FORMAT = 2
TENSORS, HEADER = "stats.safetensors", "header.json"
JOINED = "joined.safetensors"
"""TENSORS while it is written from parts on disk; once it is there, all parts are complete."""
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def save(stats: ActivationStats, folder: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Write both files into an existing folder and return the header; see `save_parts`."""
    return save_parts([stats], folder, provenance)


def save_parts(parts: Iterable[ActivationStats], folder: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Write statistics whose sites come in parts, one part in memory at a time; the bytes do not depend on the parts.

    Args:
        parts: statistics of the same samples with different sites, at least one.
        folder: an existing folder.
        provenance: entries of the header that the statistics do not hold: name and revision of the base model (beside
            its digest), digest of the calibration set.

    Returns:
        The header.
    """
    facts: list[dict[str, Any]] = []
    with TensorFile(folder / TENSORS) as file:
        for part in parts:
            for group in tensors_of(part):
                for name, tensor in group.items():
                    file.add(name, tensor)
            facts.append(facts_of(part))
        file.finish()
    return write_header(facts, folder, provenance)


def save_pieces(pieces: Pieces, names: Sequence[str], folder: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Write both files from parts on disk, which are joined into one there; an interrupted call is taken up again.

    The joined file stays with the parts, as a second name of what is in `folder` where the file system allows that.

    Args:
        names: of the parts, each with the tensors and facts of `tensors_of` and `facts_of`.

    Returns:
        The header.
    """
    join([pieces.path(name) for name in names], pieces.folder / JOINED)
    facts = [saved["facts"] for name in names if (saved := pieces.saved(name)) is not None]
    try:
        os.link(pieces.folder / JOINED, folder / TENSORS)
    except OSError:  # another file system, or one without links
        shutil.move(pieces.folder / JOINED, folder / TENSORS)
    return write_header(facts, folder, provenance)


def tensors_of(part: ActivationStats) -> Iterator[dict[str, Tensor]]:
    """The tensors of stats.safetensors, site by site."""
    for name, site in part.sites.items():
        yield {f"{name}:{what}": tensor for what, tensor in _tensors(site).items()}


def facts_of(part: ActivationStats) -> dict[str, Any]:
    """What header.json says of statistics, JSON-able: as the header, `unreached` and `sites` of this part only."""
    return {
        "base_model_digest": part.base_model_digest,
        "fingerprint": part.fingerprint,
        "settings": part.settings.model_dump(mode="json"),
        "sample_ids": list(part.sample_ids),
        "sample_tokens": part.sample_tokens.tolist(),
        "sites": {name: _row(site) for name, site in part.sites.items()},
        "unreached": list(part.unreached),
    }


def _row(site: SiteStats) -> dict[str, Any]:
    histogram = counted(site)
    return {
        "members": list(site.members),
        "width": site.width,
        "tokens": site.tokens,
        "samples": site.samples,
        "hessian": site.hessian is not None,
        "dtype": histogram.dtype,
        "first_bucket": histogram.first,
    }


def write_header(facts: Sequence[Mapping[str, Any]], folder: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Write header.json from the facts of all parts and return it."""
    first = facts[0]
    header = {
        **provenance,
        "format": FORMAT,
        "base_model": {**provenance.get("base_model", {}), "digest": first["base_model_digest"]},
        "fingerprint": first["fingerprint"],
        "settings": first["settings"],
        "samples": len(first["sample_ids"]),
        "tokens": sum(first["sample_tokens"]),
        "sample_ids": first["sample_ids"],
        "sample_tokens": first["sample_tokens"],
        "sites": {name: row for part in facts for name, row in part["sites"].items()},
        "unreached": sorted(name for part in facts for name in part["unreached"]),
    }
    write_json(folder / HEADER, header)
    return header


def _tensors(site: SiteStats) -> dict[str, Tensor]:
    histogram = counted(site)
    exact = getattr(torch, histogram.dtype)
    rows = {
        "sample_tokens": site.sample_tokens,
        "sum": site.sum,
        "sum_abs": site.sum_abs,
        "sum_sq": site.sum_sq,
        "histogram": _narrow(histogram.counts),
        "sample_min": site.sample_min.to(exact),
        "sample_max": site.sample_max.to(exact),
        "top_values": site.top_values.to(exact),
        "top_positions": site.top_positions,
        "top_channels": site.top_channels,
    }
    if site.hessian is not None:
        rows["hessian"] = torch.cat([site.hessian[i, i:] for i in range(site.width)])
    return rows


def load(folder: Path, sites: Collection[str] | None = None) -> ActivationStats:
    """The statistics that `save` wrote, equal bit by bit.

    Args:
        sites: names of the sites to read; absent names are ignored. None: all.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: another format, or the two files do not belong together.
    """
    header = read_header(folder)
    settings = StatisticsParams.model_validate(header["settings"])
    names = [name for name in header["sites"] if sites is None or name in sites]
    statistics = read_sites(folder, open_tensors(folder), header, settings, names)
    return ActivationStats(
        header["base_model"]["digest"],
        header["fingerprint"],
        settings,
        tuple(header["sample_ids"]),
        torch.tensor(header["sample_tokens"], dtype=torch.int64),
        statistics,
        tuple(header["unreached"]),
    )


def read_header(folder: Path) -> dict[str, Any]:
    """header.json, which names every site and says what is stored of it. Raises as `load`."""
    for name in (HEADER, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder.name}: no {name}; restore the statistics with `dvc checkout`")
    header: dict[str, Any] = read_json(folder / HEADER)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{folder.name}/{HEADER}: found format {header.get('format')}, this version reads {FORMAT}; collect anew "
            "(`dvc repro activation_stats`)"
        )
    return header


def open_tensors(folder: Path) -> TensorReader:
    """The values of statistics, unread. Raises as `load`."""
    try:
        return TensorReader(folder / TENSORS)
    except ValueError as error:
        raise _damaged(folder, error) from error


def read_sites(
    folder: Path, tensors: TensorReader, header: Mapping[str, Any], settings: StatisticsParams, names: Iterable[str]
) -> dict[str, SiteStats]:
    """The sites of these names, in their order. Raises as `load`.

    Args:
        tensors: from `open_tensors`.
        header: from `read_header`.
        settings: those in the header.
    """
    try:
        return {name: _site(name, header["sites"][name], settings, tensors.get_tensor) for name in names}
    except KeyError as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{folder.name}: {TENSORS} is damaged or not the one that {HEADER} describes ({error}); restore both with "
        "`dvc checkout`"
    )


def _site(name: str, row: dict[str, Any], settings: StatisticsParams, tensor: Callable[[str], Tensor]) -> SiteStats:
    def read(what: str) -> Tensor:
        return tensor(f"{name}:{what}")

    return SiteStats(
        members=tuple(row["members"]),
        sample_tokens=read("sample_tokens"),
        sum=read("sum"),
        sum_abs=read("sum_abs"),
        sum_sq=read("sum_sq"),
        histogram=Histogram(read("histogram").long(), row["first_bucket"], settings.mantissa_bits, row["dtype"]),
        hessian=_symmetric(read("hessian"), row["width"]) if row["hessian"] else None,
        sample_min=read("sample_min").float(),
        sample_max=read("sample_max").float(),
        top_values=read("top_values").float(),
        top_positions=read("top_positions"),
        top_channels=read("top_channels"),
    )


def _symmetric(upper: Tensor, width: int) -> Tensor:
    """The symmetric matrix (width, width) with this upper triangle, stored row by row."""
    S, flat, start = np.empty((width, width)), upper.numpy(), 0
    for i in range(width):
        S[i, i:] = flat[start : start + width - i]
        start += width - i
    return mirrored(torch.from_numpy(S))


def _narrow(counts: Tensor) -> Tensor:
    largest = int(counts.max()) if counts.numel() else 0
    return counts.to(next(dtype for dtype in INTEGERS if largest <= torch.iinfo(dtype).max))
