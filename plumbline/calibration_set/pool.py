"""The pool of a choice: the samples to choose from, with lazy access to tokens, embeddings and signatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.calibration_set.strategies.base import COLUMNS, Pool, Readers, Samples, require_domains
from plumbline.progress import Bar
from plumbline.raw_corpus.document import PRODUCTION
from plumbline.sample_features.reader import Embeddings, embeddings_of, read_manifest
from plumbline.sample_features.signature_reader import Stored, read_probe
from plumbline.tokenized_samples.reader import fingerprint_of, read_samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.sample_features.probe import Probe
    from plumbline.sample_features.signatures import Signatures


REMEMBERED = 4096
"""Most measured signatures kept in memory, each some 100 KB for a small model."""


@dataclass(frozen=True, eq=False)
class Sources:
    """The artifacts that a pool is read from.

    Attributes:
        samples: a tokenized_samples artifact. Its report split is never read here.
        features: a sample_features artifact of the same samples; None: what needs features fails with a reason.
        base: the base model, loaded when a strategy asks for it; by default the bundled one.
    """

    samples: Path
    features: Path | None
    base: BaseCheckpoint = field(default_factory=lambda: BaseCheckpoint.of(ModelParams()))

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the tokenization.

        Raises:
            ValueError: the features were computed on another one.
        """
        of_samples = fingerprint_of(self.samples)
        if self.features is not None:
            of_features = read_manifest(self.features)["fingerprint"]
            if of_samples != of_features:
                raise ValueError(
                    f"tokenization differs: tokenized_samples has fingerprint {of_samples[:12]}, sample_features was "
                    f"computed on {of_features[:12]}; run sample_features again"
                )
        return of_samples

    def split(self, name: str) -> Samples:
        """The samples of one split, sorted by id."""
        return Samples(self._sorted(name)[0], self.readers)

    def pool(self) -> Pool:
        """The whole pool split, with everything a strategy may read; read once."""
        return self._pool

    @cached_property
    def _pool(self) -> Pool:
        table, stream = self._sorted("pool")
        production = self.split(PRODUCTION)
        return Pool(
            table,
            self.readers,
            stream,
            self.split("tuning"),
            production if len(production) else None,
            self.load_model,
            self.load_tokenizer,
        )

    def _sorted(self, split: str) -> tuple[pa.Table, NDArray[np.int64]]:
        table = read_samples(self.samples, splits=[split], columns=list(COLUMNS))
        order = pc.sort_indices(table["sample_id"])  # so that the order on disk has no effect
        return table.take(order), order.to_numpy().astype(np.int64)

    @cached_property
    def readers(self) -> Readers:
        """Readers of the samples, shared by all splits."""
        return Readers(_input_ids_from(self.samples), self._embeddings, self._signatures, self._signed)

    def load_model(self) -> PreTrainedModel:
        """The base model, shared by everything in this process."""
        return self.base.loaded()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return self.base.tokenizer()

    def _features(self, what: str) -> Path:
        if self.features is None:
            raise ValueError(f"this strategy needs {what}; run sample_features first")
        return self.features

    def _embeddings(self, names: pa.ChunkedArray) -> Embeddings:
        return embeddings_of(self._features("embeddings"), names)

    def _signatures(self, names: Sequence[str]) -> Signatures:
        """Read stored signatures and measure the others; the latest measured ones stay in memory."""
        from plumbline.sample_features.signatures import joined

        rows = self._stored.rows_of(names)
        missing = list(dict.fromkeys(name for name, row in zip(names, rows.tolist(), strict=True) if row < 0))
        new = [name for name in missing if name not in self._measured]
        if new:
            tokens = self.readers.input_ids(new)
            signatures = self.measure({name: tokens[name] for name in new})
            self._measured.update((name, signatures.take([row])) for row, name in enumerate(signatures.sample_ids))
        parts = [self._stored.take(rows[rows >= 0]), *(self._measured[name] for name in missing)]
        for name in list(self._measured)[:-REMEMBERED]:
            del self._measured[name]
        return joined(parts).by_id(names)

    def measure(self, samples: Mapping[str, NDArray[np.int32]]) -> Signatures:
        """Signatures of samples, by id and in that order, at a forward pass each; they need not be of the corpus.

        Raises:
            ValueError: the features were made with another base model, or without signatures.
        """
        from plumbline.sample_features.measure import measure

        expected = self._stored.about["base_model_digest"]
        digest = self.base.digest()
        if expected != digest:
            raise ValueError(
                f"sample_features measured activations of the base model {expected[:12]}, the one that params.yaml "
                f"names is {digest[:12]}; run sample_features again"
            )
        total = sum(len(ids) for ids in samples.values())
        with Bar(total=total, desc="signatures", unit="token", unit_scale=True, mininterval=1) as bar:
            return measure(self.load_model(), samples.items(), self._probe, bar.update)

    @cached_property
    def _measured(self) -> dict[str, Signatures]:
        return {}

    @cached_property
    def _stored(self) -> Stored:
        return Stored(self._features("activation signatures"))

    @cached_property
    def _probe(self) -> Probe:
        return read_probe(self._features("activation signatures"))

    def _signed(self) -> Sequence[str]:
        return [str(name) for name in self._stored.sample_ids.to_pylist()]


def of_domains(pool: Pool, domains: Sequence[str] | None, choice: str) -> Pool:
    """The pool with only the samples of `domains`; None: all.

    Raises:
        ValueError: the pool has no such domain.
    """
    if domains is None:
        return pool
    present = sorted(set(pc.unique(pool.table["domain"]).to_pylist()))
    require_domains(domains, present, f"params.yaml, calibrations: {choice}")
    wanted = pc.is_in(pool.table["domain"], pa.array(domains, pa.string()))
    return pool.subset(np.flatnonzero(wanted.to_numpy()).astype(np.int64))


def _input_ids_from(samples: Path) -> Callable[[Sequence[str]], dict[str, NDArray[np.int32]]]:
    def read(names: Sequence[str]) -> dict[str, NDArray[np.int32]]:
        wanted = pads.field("sample_id").isin(pa.array(names, pa.string()))
        files = pads.dataset(samples / "shards", format="parquet")
        tokens: dict[str, NDArray[np.int32]] = {}
        for batch in files.to_batches(columns=["sample_id", "input_ids"], filter=wanted):
            for name, ids in zip(batch["sample_id"].to_pylist(), batch["input_ids"], strict=True):
                tokens[name] = np.array(ids.values, dtype=np.int32)
        return tokens

    return read
