"""A chain with an evaluation, and its papers as the command writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.artifact import read_json, write_json, write_table
from plumbline.divergence import TokenDivergence
from plumbline.evaluation.held_out import HeldOut
from plumbline.evaluation.metrics import summarize
from tests.helpers.small_chain import MODEL, record, run

DOCUMENTS, TOKENS = 12, 9
"""Held-out documents per domain, and predicted tokens of each."""


def measure(root: Path) -> dict[str, Any]:
    """An evaluation of the chain's model from made-up tokens, recorded; returns metrics.json."""
    random, n = np.random.default_rng(0), 2 * DOCUMENTS * TOKENS
    nll = random.exponential(2.0, n)
    tokens = TokenDivergence(random.exponential(0.1, n), nll, nll + random.normal(0.01, 0.1, n), random.random(n) < 0.9)
    names = [f"{i:064x}" for i in range(2 * DOCUMENTS)]
    domains = ["code"] * DOCUMENTS + ["prose"] * DOCUMENTS
    held_out = HeldOut(names, names, domains, [np.arange(TOKENS + 1)] * len(names), {})
    figures, table = summarize(tokens, np.repeat(np.arange(len(names)), TOKENS), held_out, [64])
    content = read_json(root / MODEL / "calibration.json")
    metrics = {
        **figures,
        "weights_bytes": 47112,
        "base_weights_bytes": 123456,
        "bits_per_weight": 12.04,
        "layer_errors": {},
        "weights": content["model"],
        "base_model": content["base_model"]["digest"],
        "fingerprint": content["fingerprint"],
        "calibration_set": content["calibration_set"]["digest"],
        "scheme": content["scheme"],
        "fallbacks": content["fallbacks"],
        "samples_digest": held_out.digest,
    }
    pair = MODEL.split("/")[-1]
    out = root / "data/evaluation" / pair
    out.mkdir(parents=True)
    write_json(out / "metrics.json", metrics)
    write_table(out / "documents.parquet", table)
    record(root, f"evaluation@{pair}", f"data/evaluation/{pair}", ["data/tokenized_samples", MODEL])
    return metrics


def card(folder: Path, licence: str) -> None:
    """Give a model a card with a licence."""
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n\nA model.\n", encoding="utf-8")


def papers(root: Path, out: Path, model: str = MODEL) -> tuple[dict[str, Any], dict[str, Any]]:
    """The bill of materials and the Croissant document of a model, written into `out` by the command."""
    out.mkdir(parents=True, exist_ok=True)
    files = out / "bom.cdx.json", out / "croissant.json"
    result = run(root, "audit", str(root / model), "--bom", str(files[0]), "--croissant", str(files[1]))
    assert result.exit_code == 0, result.output
    return json.loads(files[0].read_text("utf-8")), json.loads(files[1].read_text("utf-8"))


def problems_of_bom(text: str) -> str:
    """What the validator of the standard finds wrong in a bill of materials; skips where it is not installed.

    It leaves the form of IRIs to a package that is not installed. Those of Plumbline are URIs, and checked as such.
    """
    pytest.importorskip("cyclonedx", reason="needs the extra `papers`")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from jsonschema import Draft7Validator
    from rfc3986_validator import validate_rfc3986

    def is_uri_reference(value: object) -> bool:
        return not isinstance(value, str) or validate_rfc3986(value, rule="URI_reference") is not None

    Draft7Validator.FORMAT_CHECKER.checks("iri-reference")(is_uri_reference)
    return str(JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) or "")
