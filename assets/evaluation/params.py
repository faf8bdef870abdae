"""`evaluation:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvaluationParams(BaseModel):
    """How much of the report split is evaluated, and with how much memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_per_domain: int | None = Field(default=16384, gt=0)
    """Documents are taken in order of their id until a domain has so many tokens; None: all."""
    samples_per_document: int | None = Field(default=1, gt=0)
    """At most so many windows of a long document; None: all. Windows of one document say nearly the same, so the same
    tokens spread over more documents tell smaller differences apart: at the default size, 54 documents of the
    bundled corpus rather than 16."""
    batch_tokens: int = Field(default=4096, gt=0)
    base_logits_bytes: int = Field(default=4 * 2**30, ge=0)
    """Base logits up to this size are kept in memory and shared by every model of a run."""
