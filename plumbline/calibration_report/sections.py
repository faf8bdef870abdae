"""The content of the report's sections, as plain data for the template and for table.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.artifact import read_json
from plumbline.calibration_report.extremes import in_order
from plumbline.calibration_report.scales import around_zero, full_colour, heat, length_bins, position, shares, ticks
from plumbline.calibration_report.study import Study
from plumbline.calibration_set.reader import read_calibration_set, read_manifest
from plumbline.calibration_set.representativeness.plots import FARTHEST, NEAREST
from plumbline.calibration_set.representativeness.plots import position as place_on_null

NAMED = 3
"""Flagged metrics of a set that are shown without a click."""


def table(study: Study, verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per scheme and choice, in the order of the grid: the content of table.json."""
    by_pair = {(c["choice"], c["scheme"]): c for c in verdict["comparisons"]}
    rows = []
    for scheme in study.schemes:
        for choice in study.calibrations:
            figures, estimate = study.metrics[choice, scheme], verdict["estimates"][f"{choice}-{scheme}"]
            judged = by_pair.get((choice, scheme), {"verdict": "baseline"})
            relative = judged.get("relative", {})
            names = ("kl_median", "kl_p95", "kl_p99", "kl_p999", "kl_max", "perplexity_base", "perplexity_quantized")
            rows.append(
                {
                    "scheme": scheme,
                    "calibration": choice,
                    "verdict": judged["verdict"],
                    "kl_mean": estimate["kl_mean"],
                    "kl_low": estimate["low"],
                    "kl_high": estimate["high"],
                    "difference": relative.get("difference"),
                    "difference_low": relative.get("low"),
                    "difference_high": relative.get("high"),
                    **{name: figures[name] for name in names},
                    "top1_agreement": figures["top1_agreement"],
                    "rms_delta_p": figures["rms_delta_p"],
                    "out_of_domain": None if "out_of_domain" not in figures else figures["out_of_domain"]["kl_mean"],
                    "share": figures["share"],
                    "bits_per_weight": figures["bits_per_weight"],
                    "left": figures["left"],
                    "weights_bytes": figures["weights_bytes"],
                    "base_weights_bytes": figures["base_weights_bytes"],
                    "weights_digest": study.weights_digest(choice, scheme),
                    "calibration_set": figures["calibration_set"],
                }
            )
    return rows


def forest(study: Study, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Differences from the baseline relative to its KL, with intervals, on one axis for all schemes."""
    drawn = [c["relative"] for c in verdict["comparisons"] if "relative" in c]
    low, high = around_zero([c[end] for c in drawn for end in ("difference", "low", "high")])
    groups = []
    for scheme in study.schemes:
        rows = []
        for c in verdict["comparisons"]:
            if c["scheme"] != scheme:
                continue
            relative = {end: c.get("relative", {}).get(end) for end in ("difference", "low", "high")}
            at = {end: None if v is None else position(v, low, high) for end, v in relative.items()}
            rows.append({"choice": c["choice"], "verdict": c["verdict"], "relative": relative, "at": at})
        groups.append({"scheme": scheme, "rows": rows})
    marks = [{"at": position(value, low, high), "value": value} for value in ticks(low, high, 4)]
    return {"groups": groups, "zero": position(0, low, high), "ticks": marks, "any": bool(drawn)}


def domains(study: Study, baseline: str) -> dict[str, Any]:
    """Mean KL per domain, and its change from the baseline in that domain: rows are choices, a block per scheme."""
    names = sorted({name for figures in study.metrics.values() for name in figures["by_domain"]})
    return _heat(study, baseline, {name: name for name in names}, lambda figures, name: figures["by_domain"][name])


def lengths(study: Study, baseline: str) -> dict[str, Any]:
    """Mean KL per bucket of sample length, and its change from the baseline; all models have the same buckets."""
    buckets = study.metrics[study.calibrations[0], study.schemes[0]]["by_length"]
    named = {index: _bucket(bucket["shortest"], bucket["longest"]) for index, bucket in enumerate(buckets)}
    return _heat(study, baseline, named, lambda figures, index: figures["by_length"][index])


def _bucket(shortest: int, longest: int | None) -> str:
    return f"over {shortest - 1} tokens" if longest is None else f"{shortest} to {longest} tokens"


def _heat(study: Study, baseline: str, named: Mapping[Any, str], part: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """KL of parts of the documents, by the part's heading; one row for all choices with the same weights (`same`).

    Args:
        named: heading by key of a part.
        part: returns the figures of a part from a metrics.json.
    """
    groups: list[dict[str, Any]] = []
    for scheme in study.schemes:
        rows = []
        rivals = [choice for choice in study.calibrations if choice != baseline]
        same = bool(rivals) and all(study.identical(scheme, choice, baseline) for choice in rivals)
        for choice in [baseline] if same else study.calibrations:
            cells = []
            for key in named:
                kl = part(study.metrics[choice, scheme], key)["kl_mean"]
                reference = part(study.metrics[baseline, scheme], key)["kl_mean"]
                cells.append({"kl": kl, "change": kl / reference - 1 if reference else 0.0})
            rows.append({"choice": choice, "cells": cells, "same": same})
        groups.append({"scheme": scheme, "rows": rows})
    cells = [cell for group in groups for row in group["rows"] for cell in row["cells"]]
    full = full_colour(cell["change"] for cell in cells)
    for cell in cells:
        cell |= heat(cell["change"], full)
    return {"names": list(named.values()), "groups": groups, "full": full}


def layer_errors(study: Study) -> dict[str, Any]:
    """Relative error of each layer's output: a summary per model, and every layer of every choice.

    Returns:
        `summary`: rows of scheme, choice, mean, largest and the layer that has it; `layers`: rows of scheme and layer
        with a value per choice (None: its site has no Hessian). Both are empty without Hessians.
    """
    summary, layers = [], []
    for scheme in study.schemes:
        errors_of = {choice: study.metrics[choice, scheme].get("layer_errors", {}) for choice in study.calibrations}
        for choice, errors in errors_of.items():
            if errors:
                about = {"scheme": scheme, "choice": choice}
                worst = max(errors, key=errors.__getitem__)
                mean = sum(errors.values()) / len(errors)
                summary.append({**about, "mean": mean, "largest": errors[worst], "where": worst})
        for name in sorted({name for errors in errors_of.values() for name in errors}, key=in_order):
            values = [errors.get(name) for errors in errors_of.values()]
            layers.append({"scheme": scheme, "layer": name, "values": values})
    return {"summary": summary, "layers": layers}


def cost(study: Study, sets: Sequence[Mapping[str, Any]], statistics: Mapping[str, Path]) -> dict[str, Any]:
    """The cost in units that do not depend on the machine: models, tokens and bytes."""
    figures = study.metrics[study.calibrations[0], study.schemes[0]]
    rows = [
        {
            **{key: manifest[key] for key in ("name", "pool_samples", "samples", "tokens")},
            "statistics_bytes": sum(path.stat().st_size for path in statistics[manifest["name"]].iterdir()),
        }
        for manifest in sets
    ]
    models = len(study.metrics)
    tokens = sum(counts["tokens"] for counts in figures["held_out"].values())
    bytes_of_models = sum(figures["weights_bytes"] for figures in study.metrics.values())
    return {"rows": rows, "models": models, "evaluated_tokens": tokens, "models_bytes": bytes_of_models}


def held_out(study: Study) -> list[dict[str, Any]]:
    """How much of the report split was evaluated, per domain."""
    figures = study.metrics[study.calibrations[0], study.schemes[0]]
    return [{"domain": name, **counts} for name, counts in sorted(figures["held_out"].items())]


def fallbacks(study: Study) -> list[dict[str, str]]:
    """Layers that were not quantized as the scheme says, with the reason."""
    return [
        {"pair": f"{choice}-{scheme}", "layer": layer, "why": why}
        for (choice, scheme), figures in study.metrics.items()
        for layer, why in sorted(figures["fallbacks"].items())
    ]


def calibration_sets(study: Study, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The set of each choice: counts, domains, lengths, representativeness.

    Raises:
        ValueError: a model was calibrated with another set than the one in the folder.
    """
    sets = []
    for choice in study.calibrations:
        manifest = read_manifest(folders[choice])
        for scheme in study.schemes:
            used = study.metrics[choice, scheme]["calibration_set"]
            if used != manifest["digest"]:
                raise ValueError(
                    f"{choice}-{scheme} was calibrated with a set of digest {used}, the calibration set {choice} "
                    f"now has {manifest['digest']}; run `plumbline run` to quantize and evaluate again"
                )
        lengths = read_calibration_set(folders[choice], ["n_tokens"])["n_tokens"].to_numpy()
        choice_params = {
            key: value for key, value in manifest["choice"].items() if value is not None and value is not False
        }
        order = ["n", "seed", *sorted(choice_params)]
        sets.append(
            {
                "name": choice,
                "strategy": choice_params["strategy"],
                "parameters": {
                    key: _plain(choice_params[key])
                    for key in order
                    if key in choice_params.keys() - {"name", "strategy"}
                },
                "digest": manifest["digest"],
                **{key: manifest[key] for key in ("samples", "tokens", "documents", "pool_samples")},
                "domains": manifest["domains"],
                "lengths": lengths,
                "shortest": int(lengths.min()),
                "median": int(np.median(lengths)),
                "longest": int(lengths.max()),
                **_representativeness(read_json(folders[choice] / "representativeness.json")),
            }
        )
    bins = length_bins([entry["lengths"] for entry in sets])
    for entry in sets:
        part = shares(entry.pop("lengths"), bins)
        ends = zip(bins, part, strict=True)
        entry["bins"] = [{"end": end, "share": share, "height": share / max(part)} for end, share in ends]
    return sets


def _representativeness(comparison: Mapping[str, Any]) -> dict[str, list[str]]:
    """The verdicts with the worst flagged metrics, and the rest of the panel's sentences."""
    head = max(1, len(comparison["references"])) + min(NAMED, len(comparison.get("flagged", ())))
    return {"represents": comparison["sentences"][:head], "sentences": comparison["sentences"][head:]}


def against_null(calibrations: Sequence[str], folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Every distance to production among random draws of the same size: rows are metrics, columns are choices.

    Returns:
        Per reference (the tuning split, a sample of production traffic): its name, `rows` (label and a cell per choice,
        None if not measured: positions of the null's 5th to 95th percentile and of the set on an axis with the null's
        median at 0 and its 95th percentile at 1), the position of the `median`, and the number of `constant` metrics,
        which are equal for every set and draw and not shown.
    """
    comparisons = {
        choice: read_json(folders[choice] / "representativeness.json")["references"] for choice in calibrations
    }
    plots = []
    for reference in dict.fromkeys(name for references in comparisons.values() for name in references):
        blocks = {choice: block[reference] for choice, block in comparisons.items() if reference in block}
        names = dict.fromkeys(name for block in blocks.values() for name in block["metrics"])
        rows, constant = [], 0
        for name in names:
            measured = {choice: block["metrics"][name] for choice, block in blocks.items() if name in block["metrics"]}
            if all(one["value"] == one["null"]["p05"] == one["null"]["p95"] for one in measured.values()):
                constant += 1
                continue
            label = next(iter(measured.values()))["label"]
            cells = {choice: _on_null(one, name in blocks[choice]["flagged"]) for choice, one in measured.items()}
            rows.append({"label": label, "cells": [cells.get(choice) for choice in calibrations]})
        plots.append({"reference": reference, "rows": rows, "constant": constant, "median": _place(0.0)})
    return plots


def _on_null(metric: Mapping[str, Any], flagged: bool) -> dict[str, Any]:
    low, at = place_on_null(metric)
    low = max(low, NEAREST)
    width = position(max(1.0 - low, 0.0), 0, FARTHEST - NEAREST + 0.8)
    about = {"percentile": metric["percentile"], "flagged": flagged, "beyond": at > FARTHEST}
    return {**about, "low": _place(low), "width": width, "at": _place(min(max(at, NEAREST), FARTHEST))}


def _place(value: float) -> str:
    return position(value, NEAREST - 0.4, FARTHEST + 0.4)  # room for half a dot


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
