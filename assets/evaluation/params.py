"""`evaluation:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvaluationParams(BaseModel):
    """How much of the report split is evaluated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_per_domain: int | None = Field(default=16384, gt=0)
    """Whole documents are taken in order of their id until a domain has so many tokens; None: all."""
    batch_tokens: int = Field(default=4096, gt=0)
    base_logits_bytes: int = Field(default=4 * 2**30, ge=0)
    """Base logits up to this size are kept in memory and shared by every model of a run."""
