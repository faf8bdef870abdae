"""SmoothQuant: move part of the activations' range into the weights before both are rounded to 8 bits.

Xiao, Lin, Seznec, Wu, Demouth, Han: SmoothQuant, arXiv 2211.10438, equation 4: s_j = max|X_j|^a / max|W_j|^(1-a) for
channel j of a site, over all Linears that read it; x' = x / s and W' = W diag(s). Every site whose scale can be folded
is smoothed (the paper: the inputs of attention and of the MLP), and static activation ranges are those of x'.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.base_model.matrices import WeightMatrix
from plumbline.quantized_model.fold_search import FoldCheck, find_folds
from plumbline.quantized_model.folding import Fold, FoldedParameters, Transform, shared, snapped
from plumbline.quantized_model.input_statistics import InputStatistics, Statistics
from plumbline.quantized_model.params import SchemeParams


def smoothquant(
    model: PreTrainedModel,
    linears: Mapping[str, WeightMatrix],
    stats: Statistics,
    scheme: SchemeParams,
    check: FoldCheck | None = None,
) -> Transform:
    """Smooth every site of a model whose scale can be folded into its producer.

    Args:
        model: the base model; not changed, and run only by the check of `find_folds`.
        linears: the Linears to quantize, by name.
        stats: of the calibration set; reads minimum and maximum per channel.
        scheme: `smoothing` is alpha.
        check: of `find_folds`.
    """
    folds, unfolded = find_folds(model, sites_read_by(linears, stats), check)
    changes = FoldedParameters(model)
    scales: dict[str, Tensor] = {}
    spread: dict[str, dict[str, float]] = {}
    for name, fold in folds.items():
        site = stats.sites[name]
        if (reason := why_not(fold, linears, scheme)) is not None:
            unfolded[name] = reason
            continue
        members = [changes.weight(member) for member in site.members if member in linears]
        s = smoothing_scale(site, members, fold, scheme.smoothing)
        s = snapped(changes, fold, s, members_dtype(linears, site))
        if not changes.add(fold, s):
            unfolded[name] = OVERFLOW
            continue
        scales[name] = s
        absmax = _absmax(site).to(s.device)
        spread[name] = {"absmax": float(absmax.max()), "smoothed": float((absmax / s.double()).max())}
    return changes.transform(linears, scales, unfolded, {"sites": spread})


OVERFLOW = "a folded weight is not finite in the model's dtype"


def smoothing_scale(site: InputStatistics, weights: list[Tensor], fold: Fold, alpha: float) -> Tensor:
    """s (width,) float32, on the CPU, as statistics are; 1 for a channel that is never used or has only zero weights.

    Args:
        site: its min and max are read.
        weights: (out, width) of the quantized Linears that read the site.
        fold: channels that come from one row of the producer share the largest range.
    """
    X = shared(_absmax(site), fold.rows, "amax")
    W = shared(torch.stack([w.abs().amax(0) for w in weights]).amax(0).double().to(X.device), fold.rows, "amax")
    s = X**alpha / W ** (1 - alpha)
    return torch.where((X > 0) & (W > 0), s, 1.0).float()


def sites_read_by(linears: Mapping[str, WeightMatrix], stats: Statistics) -> dict[str, tuple[str, ...]]:
    """The quantized Linears that read each site, for sites that have any."""
    readers = {name: tuple(m for m in site.members if m in linears) for name, site in stats.sites.items()}
    return {name: members for name, members in readers.items() if members}


def members_dtype(linears: Mapping[str, WeightMatrix], site: InputStatistics) -> torch.dtype:
    return next(linears[member].weight.dtype for member in site.members if member in linears)


def why_not(fold: Fold, linears: Mapping[str, WeightMatrix], scheme: SchemeParams) -> str | None:
    """The reason why a scheme cannot use a correct fold; None if it can."""
    if scheme.per_tensor and fold.producer in linears:
        return f"the one scale of {fold.producer} (per_tensor: true) would have to cover rows of other magnitudes"
    return None


def _absmax(site: InputStatistics) -> Tensor:
    return torch.maximum(-site.min, site.max).double()
