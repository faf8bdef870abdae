"""The part of a quantized model that an evaluation reads."""

from __future__ import annotations

from pathlib import Path

from plumbline.artifact import sha256_files, write_json
from plumbline.base_model.load import base_model_digest
from tests.helpers.tokenized_samples import FINGERPRINT


def describe(folder: Path, base: Path, fingerprint: str = FINGERPRINT) -> None:
    """Write the part of calibration.json that an evaluation reads."""
    weights = sha256_files(folder, [path.name for path in folder.glob("*.safetensors")])
    record = {
        "fingerprint": fingerprint,
        "model": weights,
        "base_model": {"digest": base_model_digest(base)},
        "calibration_set": {"digest": "c" * 64},
        "scheme": {"name": "w4a16-rtn", "method": "rtn", "weight_bits": 4},
        "layers": {
            "a": {"bits": 4, "group_size": 32, "relative_error": 0.25},
            "b": {"bits": 8, "group_size": None, "relative_error": 0.5},
            "no statistics": {"bits": 8, "group_size": None},
        },
        "fallbacks": {"b": "no tokens"},
        "coverage": {
            "share": 0.9,
            "share_of_all": 0.75,
            "kinds": {"mlp": {"weights": 1000, "quantized": 750}},
            "left": {"lm_head.weight": "the scheme's ignore: lm_head"},
        },
    }
    write_json(folder / "calibration.json", record)
