"""`plumbline export`: writes a calibration choice for another quantizer and returns the text for the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.folder import BUNDLED
from plumbline.quantized_model.params import SchemeParams


def for_llm_compressor(root: Path, choice: str, scheme: str, schemes: Mapping[str, SchemeParams], out: Path) -> str:
    """Write a folder for llm-compressor and return the text for the user.

    Args:
        root: the workspace.
        choice: an entry of `calibrations:` whose set exists.
        scheme: an entry of `schemes`.

    Raises:
        FileNotFoundError: the set does not exist.
        ValueError: no such scheme, or `hand_over` refuses it.
    """
    from plumbline.export.llm_compressor import CHECKED, hand_over

    if scheme not in schemes:
        raise ValueError(f"no scheme {scheme!r} in params.yaml; it has {', '.join(schemes)}")
    facts = hand_over(_artifact(root, "calibration_set", choice), scheme, schemes[scheme], out)
    return (
        f"{out}: {facts['samples']} samples, {facts['tokens']:,} tokens ({facts['shortest']} to {facts['longest']} "
        f"each), set {facts['digest'][:12]}, recipe for {scheme}\n"
        + "".join(f"note: {line}\n" for line in facts["differences"])
        + f"next, where llmcompressor {CHECKED} is installed: python {out / 'quantize.py'} MODEL OUT"
    )


def for_imatrix(root: Path, choice: str, base: BaseCheckpoint, out: Path) -> str:
    """Write an importance matrix for llama.cpp and return the text for the user.

    Args:
        root: the workspace.
        choice: an entry of `calibrations:` whose statistics exist.
        base: the base model.

    Raises:
        FileNotFoundError: there are no statistics.
        FileExistsError: `out` exists.
        ModuleNotFoundError: the package gguf is not installed.
        ValueError: llama.cpp does not support the architecture or one of the layers, or the statistics are of
            another model.
    """
    from plumbline.export.imatrix import write_imatrix

    stats = _artifact(root, "activation_stats", choice)
    facts = write_imatrix(stats, base.folder, base.digest(), choice, out)
    unreached = f"note: no token reached {facts['unreached']} weights of experts; llama-quantize weighs them alike\n"
    return (
        f"{out}: {facts['tensors']} tensors of {facts['architecture']}, {facts['tokens']:,} tokens of {choice}\n"
        f"{unreached if facts['unreached'] else ''}"
        f"next, with llama.cpp: python convert_hf_to_gguf.py {base.folder} --outfile MODEL-f16.gguf{_unknown(base)}\n"
        f"then: llama-quantize --imatrix {out} MODEL-f16.gguf MODEL-q4_k_m.gguf q4_k_m"
    )


def _unknown(base: BaseCheckpoint) -> str:
    """A hint where llama.cpp's script is known to refuse the tokenizer."""
    if base.folder != BUNDLED:
        return ""
    return (
        "\n  (the script refuses the bundled model, whose tokenizer it does not know; in a checkout of Plumbline:\n"
        "  python -m benchmarks.llama_cpp --convert MODEL-f16.gguf)"
    )


def _artifact(root: Path, asset: str, choice: str) -> Path:
    folder = root / "data" / asset / choice
    if not folder.is_dir():
        available = sorted(path.name for path in folder.parent.glob("*/")) if folder.parent.is_dir() else []
        raise FileNotFoundError(
            f"no {asset} of {choice!r} in this workspace (available: {', '.join(available) or 'none'}); name one of "
            "these, or add it to `calibrations` in params.yaml and run `plumbline run`"
        )
    return folder
