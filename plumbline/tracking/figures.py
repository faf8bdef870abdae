"""The figures of an evaluation in MLflow: a dozen metrics that one sorts by, and tables of the rest.

MLflow shows a row and a chart per metric, and compares runs metric by metric: an error per layer as a metric buries the
figures that decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plumbline.tracking.run import Table

METRICS = (
    "kl_mean",
    "perplexity_quantized",
    "top1_agreement",
    "weights_bytes",
    "kl_p99",
    "perplexity_base",
    "bits_per_weight",
    "share",
)
"""Of metrics.json, the one that decides first: MLflow's pages show them in this order."""
MOST_DOMAINS = 6
"""With more domains, their KL is in the table only."""
PARTS = ("kl_mean", "kl_p99", "perplexity_quantized", "perplexity_base", "top1_agreement", "rms_delta_p", "tokens")
"""Columns of the table of domains and lengths."""
PARTS_FILE, LAYERS_FILE, REPRESENTS_FILE = "parts.json", "layer_errors.json", "representativeness.json"


def evaluation_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json that are metrics of the run, by name."""
    from plumbline.evaluation.summary import layer_error_figures
    from plumbline.raw_corpus.document import OUT_OF_DOMAIN

    metrics = {name: content[name] for name in METRICS if name in content}
    domains = content["by_domain"]
    if len(domains) <= MOST_DOMAINS:
        metrics |= {f"kl_mean/{domain}": values["kl_mean"] for domain, values in domains.items()}
    for part, name in ((OUT_OF_DOMAIN, "kl_mean"), ("flips", "flips")):
        if name in content.get(part, {}):
            metrics[f"{part}/{name}"] = content[part][name]
    figures = layer_error_figures(content["layer_errors"])
    return metrics | {name: figures[name] for name in ("layer_error_max",) if name in figures}


def representativeness_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The p-value over all distances of a set from production, per reference."""
    return {
        f"representativeness/{reference}/p_value": block["p_value"]
        for reference, block in content["references"].items()
    }


def evaluation_tables(content: Mapping[str, Any], represents: Mapping[str, Any]) -> dict[str, Table]:
    """The rest, by file name: figures by domain and length, error of each layer, distances from production.

    Args:
        content: metrics.json.
        represents: representativeness.json of the calibration set.
    """
    from plumbline.evaluation.summary import bucket_name

    parts = {f"domain {name}": values for name, values in content["by_domain"].items()}
    parts |= {f"{bucket_name(bucket)} tokens": bucket for bucket in content["by_length"]}
    whole = {name: content.get(name) for name in PARTS}
    rows = [[name, *(values.get(key) for key in PARTS)] for name, values in {"all": whole, **parts}.items()]
    layers = [[name, error] for name, error in content["layer_errors"].items()]
    distances = [
        [reference, row["label"], row["value"], row["percentile"], name in block["flagged"]]
        for reference, block in represents["references"].items()
        for name, row in block["metrics"].items()
    ]
    tables = {
        PARTS_FILE: Table(("part", *PARTS), rows),
        LAYERS_FILE: Table(("layer", "relative error of its output"), layers),
        REPRESENTS_FILE: Table(
            ("reference", "distance", "value", "percentile among random draws", "farther than chance explains"),
            distances,
        ),
    }
    return {name: table for name, table in tables.items() if table.rows}
