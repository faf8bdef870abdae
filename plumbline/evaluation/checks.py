"""Whether a quantized model, its record, the samples and the base model belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_files
from plumbline.tokenized_samples.reader import fingerprint_of


def checked_fingerprint(quantized: Path, record: dict[str, Any], samples: Path) -> str:
    """The fingerprint of the samples, which must be the one that the model was calibrated under.

    Raises:
        ValueError: it is another; names both.
    """
    expected, fingerprint = record["fingerprint"], fingerprint_of(samples)
    if fingerprint != expected:
        raise ValueError(
            f"tokenization differs: {quantized.name}/calibration.json was calibrated with fingerprint {expected}, "
            f"{samples.name} has {fingerprint}. Build the calibration sets and quantized models again from these "
            "samples (`plumbline run`), or restore the samples that belong to the model (`dvc checkout`)"
        )
    return str(fingerprint)


def checked_base_model(quantized: Path, record: dict[str, Any], digest: str) -> str:
    """The base model's digest, which must be that of the one that was quantized.

    Raises:
        ValueError: it is another; names both.
    """
    expected = record["base_model"]["digest"]
    if digest != expected:
        raise ValueError(
            f"{quantized.name} was quantized from a base model with digest {expected}; `model:` in params.yaml now has "
            f"{digest}. Quantize again (`plumbline run`), or give `model:` the earlier one"
        )
    return digest


def checked_weights(quantized: Path, record: dict[str, Any]) -> dict[str, str]:
    """SHA-256 per file of weights or the model's own code, as on disk now; they must be those that are on record.

    Raises:
        ValueError: names the files that are not.
    """
    files = [path.name for pattern in ("*.safetensors", "*.py") for path in quantized.glob(pattern)]
    digests = sha256_files(quantized, files)
    if digests != record["model"]:
        changed = sorted(
            name for name in {*digests, *record["model"]} if digests.get(name) != record["model"].get(name)
        )
        raise ValueError(
            f"{quantized.name}: {', '.join(changed)} is not what calibration.json says was quantized; restore the "
            "folder with `dvc checkout`, or quantize again"
        )
    return digests
