"""The base model's tokenizer and the embedder: token ids to embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plumbline.artifact import read_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.sample_features.embedder import embed, load
from plumbline.sample_features.params import FeatureParams

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Engine:
    """The base model's tokenizer and the embedder, loaded when the first sample needs them."""

    def __init__(self, params: FeatureParams, folder: Path, base: BaseCheckpoint, samples: Path) -> None:
        self.params, self.folder, self.base, self.samples = params, folder, base, samples

    @cached_property
    def tokenizer(self) -> Any:
        from plumbline.tokenized_samples.fingerprint import policy_of, tokenizer_fingerprint

        tokenizer = self.base.tokenizer()
        accounting = read_json(self.samples / "accounting.json")
        fingerprint, _ = tokenizer_fingerprint(tokenizer, policy_of(accounting["fingerprint_parts"]))
        if fingerprint != accounting["fingerprint"]:
            raise ValueError(
                f"tokenization differs: tokenized_samples has fingerprint {accounting['fingerprint'][:12]}, the "
                f"tokenizer of {self.base.name} gives {fingerprint[:12]}; run tokenized_samples again"
            )
        return tokenizer

    @cached_property
    def model(self) -> SentenceTransformer:
        return load(self.folder, self.params.max_tokens, self.params.matmul_precision)

    @property
    def dimension(self) -> int:
        return int(self.model.get_embedding_dimension() or 0)

    def embed(self, input_ids: list[NDArray[np.int32]]) -> Iterator[tuple[list[int], NDArray[np.float16]]]:
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return embed(self.model, texts, self.params.batch_size)
