"""The check that an engine serves quantized models as simulated: what it reads of a workspace, and its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plumbline.graph.checks import CheckOutcome


def base_and_texts(
    root: Path | None, base: Path | None = None, files: Sequence[Path] = ()
) -> tuple[Path, bool, list[list[int]]]:
    """The folder of the base model, whether its own code may run, and the token ids of held-out texts.

    Args:
        root: the workspace, whose base model and report split are taken where `base` and `files` are not given.

    Raises:
        ValueError: there is no text to score.
        FileNotFoundError: there is no base model, or no sample yet.
    """
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.base_model.load import load_tokenizer
    from plumbline.params import load_params
    from plumbline.serving import prompts

    trusted = False
    if base is None:
        checkpoint = BaseCheckpoint.of(load_params(root).model, root or Path())
        base, trusted = checkpoint.folder, checkpoint.trust_remote_code
    if files or root is None:
        return base, trusted, prompts.of_files(files, load_tokenizer(base, trusted))
    return base, trusted, prompts.of_workspace(root)


def served_as_simulated(root: Path, pairs: Sequence[str]) -> CheckOutcome:
    """Serve the pairs that have not been served since they changed, and report all of them.

    Without the engine's environment it is a warning that says how to make it, never a success.
    """
    from plumbline.serving.check import CheckSettings, dtype_of, serve_check
    from plumbline.serving.engine import EngineFailed
    from plumbline.serving.environment import NoEngine, engine_environment
    from plumbline.serving.record import LOG, record_of, record_path, write_record

    folders = {pair: root / "data" / "quantized_model" / pair for pair in pairs}
    if not folders:
        return CheckOutcome(False, "not tried: there is no quantized model yet; `plumbline run`", warn=True)
    records = {pair: record_of(root, pair, folder) for pair, folder in folders.items()}
    waiting = {pair: folders[pair] for pair, record in records.items() if record is None}
    if waiting:
        try:
            environment, (base, trusted, texts) = engine_environment(root), base_and_texts(root)
            settings = CheckSettings(dtype_of(base), trust_remote_code=trusted)
            fresh = serve_check(environment, base, waiting, texts, settings, root / LOG)
        except (NoEngine, EngineFailed) as error:
            return CheckOutcome(False, f"not tried: {error}", {"not_tried": sorted(waiting)}, warn=True)
        for pair, record in fresh.items():
            write_record(record_path(root, pair), record)
        records |= fresh
    return _outcome({pair: record for pair, record in records.items() if record is not None})


def _outcome(records: dict[str, dict]) -> CheckOutcome:
    by_verdict = {
        verdict: [pair for pair, record in records.items() if record["verdict"] == verdict]
        for verdict in ("passed", "failed", "no kernel")
    }
    reference = [pair for pair in by_verdict["passed"] if records[pair]["products"] == "reference"]
    metadata = {
        pair: f"{record['verdict']} ({record['products']}): {record['sentence']}" for pair, record in records.items()
    }
    if bad := by_verdict["failed"] + by_verdict["no kernel"]:
        sentences = "; ".join(f"{pair}: {records[pair]['sentence']}" for pair in bad[:3])
        return CheckOutcome(False, sentences, metadata, warn=not by_verdict["failed"])
    untried = (
        f", {len(reference)} of them with products in plain torch, as vLLM has no kernel for them here"
        if reference
        else ""
    )
    return CheckOutcome(True, f"vLLM serves {len(records)} models as simulated{untried}", metadata)
