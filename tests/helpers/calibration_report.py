"""A small study on disk, three choices, three schemes, 60 documents of two domains, and its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from plumbline.activation_stats.store import HEADER, TENSORS
from plumbline.artifact import read_json, write_json, write_table
from plumbline.calibration_report.build import build_calibration_report
from plumbline.calibration_report.params import ReportParams
from plumbline.calibration_report.summary import summary
from plumbline.calibration_set.reader import set_digest
from plumbline.evaluation.flips import flip_figures

CALIBRATIONS = ["random", "chosen", "off-domain"]
SCHEMES = ["w4a16-rtn", "w4a16-gptq", "w3a16-gptq"]
EFFECT = {"random": 0.0, "chosen": 0.0005, "off-domain": 0.2}
"""Relative change of every document's KL, planted under the gptq schemes."""


FINGERPRINT = "f" * 64
NULL = {"p05": 1.0, "median": 2.0, "p95": 3.0}
REFERENCE = {
    "flagged": ["beyond"],
    "null": "400 random draws",
    "metrics": {
        "inside": {"label": "token <i>ids</i>", "value": 1.5, "null": NULL, "percentile": 20.0},
        "beyond": {"label": "vocabulary", "value": 90.0, "null": NULL, "percentile": 100.0},
        "constant": {"label": "nothing", "value": 0.0, "null": dict.fromkeys(NULL, 0.0), "percentile": 50.0},
    },
}


BASE_MODEL = {"name": "org/base", "revision": "c" * 40, "digest": "b" * 64}


class Disk:
    """Folders of a study, as the stages upstream write them."""

    def __init__(self, root: Path, documents: int = 60) -> None:
        self.root = root
        self.grid = {"calibrations": CALIBRATIONS, "schemes": SCHEMES}
        self.evaluations: dict[str, Path] = {}
        self.sets: dict[str, Path] = {}
        self.statistics: dict[str, Path] = {}
        rng = np.random.default_rng(5)
        self.tokens = rng.integers(20, 1024, documents)
        self.domains = ["code" if index % 3 else "prose" for index in range(documents)]
        for choice in CALIBRATIONS:
            self.sets[choice] = self._set(root / "set" / choice, choice, rng)
            self.statistics[choice] = self._statistics(root / "statistics" / choice, choice)
        for scheme in SCHEMES:
            base = rng.gamma(4, 0.01, documents)
            for choice in CALIBRATIONS:
                noise = 1 + EFFECT[choice] + 0.02 * rng.standard_normal(documents)
                reads_nothing = scheme == "w4a16-rtn" or choice == "random"
                kl = self.tokens * base * (1.0 if reads_nothing else noise)
                weights = scheme if scheme == "w4a16-rtn" else f"{choice}-{scheme}"
                self._evaluation(choice, scheme, kl, weights)

    def _set(self, path: Path, choice: str, rng: np.random.Generator) -> Path:
        ids = [f"{choice}{number}" for number in range(8)]
        lengths = rng.integers(20, 1025, 8)
        write_table(
            path / "samples.parquet",
            pa.table(
                {
                    "sample_id": ids,
                    "n_tokens": lengths,
                    "doc_ids": [[f"document {number} of {choice}"] for number in range(8)],
                    "domain": ["code"] * 8,
                }
            ),
        )
        manifest = {
            "choice": {"name": choice, "strategy": "random", "n": 8, "seed": 0, "domains": ["<b>code</b>"]},
            "fingerprint": FINGERPRINT,
            "digest": set_digest(ids, FINGERPRINT),
            "samples": 8,
            "tokens": int(lengths.sum()),
            "documents": 7,
            "pool_samples": 1234,
            "domains": {"code": {"samples": 8, "tokens": int(lengths.sum())}},
        }
        write_json(path / "manifest.json", manifest)
        write_json(
            path / "representativeness.json",
            {
                "references": {"tuning": REFERENCE},
                "flagged": ["beyond"],
                "sentences": ["As close to production as a random draw.", "Tokens: 9 %.", "Lengths: 2 %."],
            },
        )
        return path

    def _statistics(self, path: Path, choice: str) -> Path:
        """Sample 3 has the largest magnitude at both sites; twice as large as any other at one of them."""
        path.mkdir(parents=True)
        sites = {f"model.layers.{layer}.mlp.down_proj": 2.0 if layer == 10 else 1.25 for layer in (10, 2)}
        tensors = {}
        for name, largest in sites.items():
            values = torch.linspace(0.5, 1.0, 8).unsqueeze(1).repeat(1, 2)
            values[3] = torch.tensor([-largest, 0.1])
            tensors |= {f"{name}:top_values": values.bfloat16()}
            tensors |= {
                f"{name}:top_{what}": torch.full((8, 2), 7, dtype=torch.int32) for what in ("positions", "channels")
            }
        save_file(tensors, path / TENSORS)
        ids = [f"{choice}{number}" for number in range(8)]
        about = {name: {"members": [name]} for name in sites}
        digest = set_digest(ids, FINGERPRINT)
        write_json(
            path / HEADER, {"sites": about, "sample_ids": ids, "calibration_set": digest, "base_model": BASE_MODEL}
        )
        return path

    def _evaluation(self, choice: str, scheme: str, kl: np.ndarray, weights: str) -> None:
        path = self.root / "evaluation" / f"{choice}-{scheme}"
        names = [f"{index:03d}" for index in range(len(kl))]
        columns = {"doc_id": names, "domain": self.domains, "n_tokens": self.tokens, "kl_sum": kl}
        write_table(path / "documents.parquet", pa.table(columns))
        mean = float(kl.sum() / self.tokens.sum())
        figures = {"kl_mean": mean, "kl_median": mean / 2, "kl_p95": 3 * mean, "kl_p99": 5 * mean, "kl_max": 9 * mean}
        figures |= {"perplexity_base": 16.0, "perplexity_quantized": 16.0 + mean, "top1_agreement": 0.9}
        figures |= {"kl_p999": 7 * mean, "rms_delta_p": 0.0123}
        metrics = {
            **figures,
            "by_domain": dict.fromkeys(("code", "prose"), figures),
            "by_length": [
                {"shortest": 1, "longest": 256, **figures},
                {"shortest": 257, "longest": None, **figures, "kl_mean": 2 * mean},
            ],
            "held_out": {
                name: {"documents": 30, "documents_available": 40, "tokens": 9000, "tokens_available": 20000}
                for name in ("code", "prose")
            },
            "weights_bytes": 5_000_000,
            "share": 1.0,
            "bits_per_weight": 4.5,
            "left": {"the scheme's ignore: lm_head": 1},
            "base_weights_bytes": 12_000_000,
            "weights": {"model.safetensors": weights},
            "base_model": BASE_MODEL["digest"],
            "calibration_set": set_digest([f"{choice}{number}" for number in range(8)], FINGERPRINT),
            "scheme": {"name": scheme, "method": scheme.split("-")[1], "weight_bits": 4, "activations": None},
            "group_sizes": {"128": 40, "43": 5},
            "fallbacks": {"model.layers.0.mlp.down_proj": "no tokens"} if scheme == "w3a16-gptq" else {},
            "layer_errors": {f"model.layers.{n}.mlp.down_proj": 0.001 * (1 + n) for n in (10, 2)},
            "fingerprint": FINGERPRINT,
            "samples_digest": "5" * 64,
            "out_of_domain_digest": "6" * 64,
        }
        write_json(path / "metrics.json", metrics)
        self.evaluations[f"{choice}-{scheme}"] = path


def build_report(disk, out: Path) -> dict:
    out.mkdir()
    build_calibration_report(ReportParams(), disk.grid, disk.evaluations, disk.sets, disk.statistics, out)
    return summary(out)


ITEMS = 80


def add_items(disk: Disk) -> dict[str, pa.Table]:
    """The off-domain choice loses 30 of the base model's correct answers under one scheme, the others trade a few."""
    rng = np.random.default_rng(3)
    base = rng.random(ITEMS) < 0.6
    tables = {}
    for pair, path in disk.evaluations.items():
        quantized = base.copy()
        swapped = rng.choice(ITEMS, 4, replace=False)
        quantized[swapped] = ~quantized[swapped]
        if pair == "off-domain-w3a16-gptq":
            quantized[np.flatnonzero(base)[:30]] = False
        ids = [f"item{number:02d}" for number in range(ITEMS)]
        answers = {"answer": np.zeros(ITEMS, int), "chosen_base": 1 - base, "chosen_quantized": 1 - quantized}
        correct = {"correct_base": base, "correct_quantized": quantized}
        tables[pair] = pa.table({"item_id": ids, **answers, **correct})
        write_table(path / "items.parquet", tables[pair])
        write_json(path / "metrics.json", {**read_json(path / "metrics.json"), "flips": flip_figures(tables[pair])})
    return tables
