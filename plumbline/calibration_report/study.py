"""The evaluations of a grid, read and checked to be comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from plumbline.artifact import read_json, sha256_json


@dataclass(frozen=True)
class Study:
    """Evaluations of choices × schemes on the same D documents."""

    calibrations: list[str]
    schemes: list[str]
    metrics: Mapping[tuple[str, str], Mapping[str, Any]]
    """metrics.json by (calibration, scheme)."""
    tokens: np.ndarray
    """int64 (D,): predicted tokens per document."""
    kl: Mapping[tuple[str, str], np.ndarray]
    """float64 (D,): KL in nats, summed over the document's tokens."""
    domains: list[str]

    def identical(self, scheme: str, one: str, other: str) -> bool:
        """Whether two choices gave the same weights, byte for byte."""
        return bool(self.metrics[one, scheme]["weights"] == self.metrics[other, scheme]["weights"])

    def weights_digest(self, calibration: str, scheme: str) -> str:
        """One digest for the weight files of a model."""
        return sha256_json(self.metrics[calibration, scheme]["weights"])


SAME = {
    "base_model": "the base model",
    "fingerprint": "the tokenization",
    "samples_digest": "the documents evaluated",
    "out_of_domain_digest": "the out-of-domain documents evaluated",
}


def read_study(calibrations: Sequence[str], schemes: Sequence[str], evaluations: Mapping[str, Path]) -> Study:
    """Read every pair `CALIBRATION-SCHEME` of the grid.

    Raises:
        ValueError: a pair is missing, or two evaluations differ in base model, tokenization or documents.
    """
    metrics: dict[tuple[str, str], dict[str, Any]] = {}
    kl: dict[tuple[str, str], np.ndarray] = {}
    first: tuple[str, dict[str, Any], Any] | None = None
    for scheme in schemes:
        for calibration in calibrations:
            pair = f"{calibration}-{scheme}"
            if pair not in evaluations:
                raise ValueError(f"no evaluation of {pair}, which is in the grid; run `plumbline run`")
            figures = read_json(evaluations[pair] / "metrics.json")
            table = pq.read_table(evaluations[pair] / "documents.parquet")
            documents = table.select(["doc_id", "domain", "n_tokens"])
            if first is None:
                first = pair, figures, documents
            for key, what in SAME.items():
                if figures[key] != first[1][key]:
                    raise ValueError(
                        f"{what} of {first[0]} ({first[1][key]}) and of {pair} ({figures[key]}) differ, so their "
                        "figures cannot be compared; run `plumbline run`, which evaluates both under the same "
                        "conditions"
                    )
            if not documents.equals(first[2]):
                raise ValueError(
                    f"documents.parquet of {first[0]} and of {pair} list different documents; run both again"
                )
            metrics[calibration, scheme] = figures
            kl[calibration, scheme] = table["kl_sum"].to_numpy()
    if first is None:
        raise ValueError("the grid is empty; name calibrations and schemes under `grid:` in params.yaml")
    documents = first[2]
    keep = documents["n_tokens"].to_numpy() > 0  # a document of one token predicts nothing
    return Study(
        list(calibrations),
        list(schemes),
        metrics,
        documents["n_tokens"].to_numpy()[keep],
        {pair: values[keep] for pair, values in kl.items()},
        [str(name) for name in np.array(documents["domain"].to_pylist())[keep]],
    )
