"""What a promotion reads: choices, evaluated, with their models, sets, samples and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.artifact import write_json, write_table
from plumbline.calibration_set.reader import SCHEMA, set_digest
from plumbline.deployed_model.promotion import FIGURES, Inputs
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.reader import fingerprint_of, read_samples
from tests.helpers.paths import BUNDLED

POLICY = TokenizeParams.model_validate({"max_length": 64, "splits": {"tuning": 0.1, "report": 0.4}})
SCHEME = {"method": "gptq", "weight_bits": 4}
KL = {"random": 0.020, "stratified": 0.018, "prose": 0.030}
DOCUMENTS = 40


class Workshop:
    """The folders, and ways to change one thing in them."""

    def __init__(self, root: Path, samples: Path) -> None:
        self.root, self.samples, self.fingerprint = root, samples, fingerprint_of(samples)
        self.inputs = Inputs(root / "evaluation", root / "model", root / "set", samples, root / "report")
        noise = np.random.default_rng(3).normal(1, 0.1, DOCUMENTS)
        for choice, kl in KL.items():
            self.evaluate(f"{choice}-w4", kl * noise)
            self.calibrate(choice, self.split("pool")[:4])
        self.inputs.report.mkdir()
        (self.inputs.report / "report.html").write_text("<html>")
        write_json(self.inputs.report / "verdict.json", {"sentences": ["w4: yes", "w3: no"], "comparisons": []})

    def split(self, name: str) -> list[dict[str, Any]]:
        return list(read_samples(self.samples, [name], ["sample_id", "doc_id", "input_ids"]).to_pylist())

    def evaluate(self, pair: str, kl: np.ndarray, folder: Path | None = None, **changes: Any) -> Path:
        """An evaluation of `kl` nats per token in each document, and the model beside it."""
        path = folder or self.inputs.evaluations / pair
        tokens = np.full(len(kl), 100)
        names = [f"{number:03d}" for number in range(len(kl))]
        domains = ["code" if number % 2 else "prose" for number in range(len(kl))]
        columns = {"doc_id": names, "domain": domains, "n_tokens": tokens, "kl_sum": kl * tokens}
        write_table(path / "documents.parquet", pa.table(columns))
        metrics: dict[str, Any] = dict.fromkeys(FIGURES, 1.0) | {"kl_mean": float(kl.mean())}
        metrics |= {"weights": {"model.safetensors": f"sha-{pair}-{kl.mean():.9f}"}, "base_model": "b", "fallbacks": {}}
        metrics |= {"fingerprint": self.fingerprint, "samples_digest": "s", "out_of_domain_digest": "o"}
        metrics |= {
            "weights_bytes": 5_000_000,
            "base_weights_bytes": 12_000_000,
            "scheme": {"name": "w4", **SCHEME},
        }
        write_json(path / "metrics.json", {"share": 1.0, **metrics, **changes})
        model = self.inputs.models / pair
        if folder is None and not model.exists():
            model.mkdir(parents=True)
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
                (model / name).write_bytes((BUNDLED / name).read_bytes())
            parts = json.loads((self.samples / "accounting.json").read_text())["fingerprint_parts"]
            write_json(model / "calibration.json", {"fingerprint": self.fingerprint, "fingerprint_parts": parts})
        return path

    def calibrate(self, choice: str, rows: list[dict[str, Any]]) -> None:
        """A calibration set of these samples (rows of tokenized_samples)."""
        columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in SCHEMA.names}
        columns["sample_id"] = [row["sample_id"] for row in rows]
        columns["doc_ids"] = [[row["doc_id"]] for row in rows]
        columns["input_ids"] = [row["input_ids"] for row in rows]
        write_table(self.inputs.sets / choice / "samples.parquet", pa.table(columns, SCHEMA))
        manifest = {"fingerprint": self.fingerprint, "digest": set_digest(columns["sample_id"], self.fingerprint)}
        write_json(self.inputs.sets / choice / "manifest.json", manifest)
