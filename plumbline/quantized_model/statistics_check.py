"""Checks that the statistics hold what a scheme reads, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping

from plumbline.base_model.matrices import WeightMatrix
from plumbline.quantized_model.input_statistics import Statistics
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.scheme import scheme_of

PARTS = {
    "hessian": ("second moments", "set statistics.hessian: true in params.yaml"),
    "histogram": ("a histogram of activations", "write activations: {range: minmax}"),
    "sums": ("mean magnitudes", "use another transform"),
}


def require_statistics(matrices: Mapping[str, WeightMatrix], stats: Statistics, scheme: SchemeParams) -> None:
    """Refuse statistics that lack what the scheme reads about the matrices that it quantizes.

    A layer without statistics is a fallback if no token reached it, and an error otherwise.

    Raises:
        ValueError: names the layer, what is missing and the line of params.yaml to change.
    """
    scheme = scheme.model_copy(update={"kv_cache": None})  # kv_cache.py checks keys and values
    if not scheme.reads:
        return
    sites = {member: site for site in stats.sites.values() for member in site.members}
    for name, matrix in matrices.items():
        site, own = sites.get(name), scheme_of(name, matrix, scheme)
        static = own.activations is not None and own.activations.calibrated
        if site is None and name not in stats.unreached:
            reader = f"method {scheme.method}" if scheme.method != "rtn" else "the scheme"
            raise ValueError(
                f"{name} has no statistics, which {reader} reads: take it out of statistics.ignore in params.yaml, or "
                "add it to the scheme's ignore"
            )
        if site is None and static:
            raise ValueError(
                f"no token of the calibration set reached {name}, so there is no range for its activations: choose a "
                "larger or more varied set, write activations: {dynamic: true}, or add it to the scheme's ignore"
            )
        if site is None:
            continue
        stored = {"hessian": site.hessian, "histogram": site.histogram, "sums": getattr(site, "sum_abs", None)}
        for part in own.reads:
            if part in PARTS and stored[part] is None:
                description, fix = PARTS[part]
                raise ValueError(f"the statistics hold no {part} of {name}: the scheme reads {description}; {fix}")
