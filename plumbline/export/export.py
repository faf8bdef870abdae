"""`plumbline export`: from the name of a choice to files for another quantizer, and what to say about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.quantized_model.params import SchemeParams


def for_llm_compressor(root: Path, choice: str, scheme: str, schemes: Mapping[str, SchemeParams], out: Path) -> str:
    """Write a folder for llm-compressor; returns the text for the user.

    Args:
        root: the workspace.
        choice: an entry of `calibrations:` whose set has been made.
        scheme: an entry of `schemes`.

    Raises:
        FileNotFoundError: the set has not been made.
        ValueError: no such scheme, and what `hand_over` refuses.
    """
    from plumbline.export.llm_compressor import CHECKED, hand_over

    if scheme not in schemes:
        raise ValueError(f"no scheme {scheme!r} in params.yaml; it has {', '.join(schemes)}")
    about = hand_over(_artifact(root, "calibration_set", choice), scheme, schemes[scheme], out)
    return (
        f"{out}: {about['samples']} samples, {about['tokens']:,} tokens ({about['shortest']} to {about['longest']} "
        f"each), set {about['digest'][:12]}, recipe for {scheme}\n"
        f"next, where llmcompressor {CHECKED} is installed: python {out / 'quantize.py'} MODEL OUT"
    )


def for_imatrix(root: Path, choice: str, base: BaseCheckpoint, out: Path) -> str:
    """Write an importance matrix for llama.cpp; returns the text for the user.

    Args:
        root: the workspace.
        choice: an entry of `calibrations:` whose statistics have been collected.
        base: the base model.

    Raises:
        FileNotFoundError: there are no statistics.
        FileExistsError: `out` exists.
        ModuleNotFoundError: the package gguf is not installed.
        ValueError: llama.cpp does not know the architecture, or not one of the layers, or the statistics are of
            another model.
    """
    from plumbline.export.imatrix import write_imatrix

    stats = _artifact(root, "activation_stats", choice)
    about = write_imatrix(stats, base.folder, base.digest(), choice, out)
    return (
        f"{out}: {about['tensors']} tensors of {about['architecture']}, {about['tokens']:,} tokens of {choice}\n"
        f"next, with llama.cpp: llama-quantize --imatrix {out} MODEL-f16.gguf MODEL-q4_k_m.gguf q4_k_m"
    )


def _artifact(root: Path, asset: str, choice: str) -> Path:
    folder = root / "data" / asset / choice
    if not folder.is_dir():
        made = sorted(path.name for path in folder.parent.glob("*/")) if folder.parent.is_dir() else []
        raise FileNotFoundError(
            f"no {asset} of {choice!r} in this workspace (there are: {', '.join(made) or 'none'}); name one that is "
            "there, or add it to `calibrations` in params.yaml and run `plumbline run`"
        )
    return folder
