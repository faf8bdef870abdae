"""Reads what activation statistics need of a calibration set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbline.activation_stats.masks import masks_of
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.totals import Masks, Sample
from plumbline.artifact import sha256_json
from plumbline.calibration_set.reader import read_calibration_set, read_manifest


@dataclass(frozen=True, eq=False)
class Source:
    """The contents of a calibration set that statistics are collected from."""

    samples: list[Sample]
    masks: Masks | None
    """Tokens that count, by sample; None: all tokens of every sample."""
    fingerprint: str
    digest: str

    @property
    def tokens(self) -> int:
        return sum(len(ids) for _, ids in self.samples)

    @property
    def content(self) -> str:
        """SHA-256 of the set's digest and of which of its tokens count."""
        counted = {name: mask.nonzero().flatten().tolist() for name, mask in (self.masks or {}).items()}
        return sha256_json([self.digest, self.masks is None, counted])

    @property
    def longest(self) -> Sequence[int]:
        """The token ids of the longest sample."""
        return max((ids for _, ids in self.samples), key=len)


def read_source(calibration_set: Path, settings: StatisticsParams) -> Source:
    """Samples and masks of a calibration set, under the settings.

    Raises:
        ValueError: samples.parquet does not match manifest.json, or lacks the assistant spans that the settings need.
    """
    manifest = read_manifest(calibration_set)
    table = read_calibration_set(calibration_set, ["sample_id", "input_ids"])
    samples: list[Sample] = list(zip(table["sample_id"].to_pylist(), table["input_ids"].to_pylist(), strict=True))
    source = Source(samples, masks_of(calibration_set, settings), manifest["fingerprint"], manifest["digest"])
    if (len(samples), source.tokens) != (manifest["samples"], manifest["tokens"]):
        raise ValueError(
            f"{calibration_set.name}/samples.parquet: found {len(samples)} samples with {source.tokens} tokens, "
            f"manifest.json says {manifest['samples']} with {manifest['tokens']}; restore the set with `dvc checkout`"
        )
    return source
