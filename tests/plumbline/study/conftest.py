"""A tiny model, a tokenized corpus of two domains, and a small study over them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.activation_stats.params import StatisticsParams
from plumbline.calibration_set.pool import Sources
from plumbline.quantized_model.params import ActivationParams, SchemeParams
from plumbline.study.build import build_study
from plumbline.study.params import StudyParams
from plumbline.study.summary import summary as summary_of
from tests.helpers.checkpoint import checkpoint
from tests.plumbline.evaluation.conftest import write_samples

VOCABULARY = 96
SCHEMES = {
    "w4": SchemeParams(method="gptq", weight_bits=4, group_size=16),
    "w8a8": SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams(range="mse")),
}
RULES = {"random": {"strategy": "random"}, "lengths": {"strategy": "length_stratified", "quotas": "equal"}}


SETTINGS = StatisticsParams()


@dataclass(frozen=True)
class Small:
    """What a study reads, and how to run one."""

    sources: Sources
    root: Path

    def params(self, **changed: Any) -> StudyParams:
        asked = {"rules": RULES, "sizes": [2, 5], "draws": 5, "schemes": list(SCHEMES), "resamples": 400}
        asked |= {"random_sets": 0, "tokens_per_domain": 140}
        return StudyParams.model_validate({**asked, **changed})

    def run(self, out: Path, scratch: Path, settings: StatisticsParams = SETTINGS, **changed: Any) -> dict[str, Any]:
        out.mkdir(parents=True)
        params = self.params(**changed)
        schemes = {name: SCHEMES[name] for name in params.schemes}
        build_study(params, schemes, settings, self.sources, scratch, {"code": "1"}, out)
        return summary_of(out)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=64, num_key_value_heads=2, initializer_range=0.3, **sizes
    )
    LlamaForCausalLM(config).eval().save_pretrained(root / "base")
    rng = np.random.default_rng(0)
    rows = []
    for split, documents in (("pool", 20), ("report", 16), ("tuning", 2)):
        for domain in ("prose", "code"):
            for number in range(documents):
                doc_id = hashlib.sha256(f"{split}{domain}{number}".encode()).hexdigest()
                for _ in range(1 + number % 2):
                    ids = rng.integers(0, VOCABULARY, rng.integers(2, 41))
                    rows.append({"doc_id": doc_id, "split": split, "domain": domain, "input_ids": ids})
    samples = write_samples(root / "tokenized_samples", rows)
    return Small(Sources(samples, None, checkpoint("base", root, device="auto")), root)
