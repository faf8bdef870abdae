"""`evaluation:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class EvaluationParams(BaseModel):
    """How much of the report split is evaluated, and the memory used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_per_domain: int | None = Field(default=16384, gt=0)
    """Documents are taken in order of their id until a domain has this many tokens; None: all."""
    samples_per_document: int | None = Field(default=1, gt=0)
    """Most windows of a long document; None: all. Windows of one document are similar, so the same tokens spread over
    more documents detect smaller differences: at the default size, 54 documents of the bundled corpus, not 16."""
    length_buckets: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    """Figures are also given per bucket of sample length: the longest sample of each bucket, in tokens, ascending.
    Longer samples make a bucket of their own; empty buckets are left out."""
    items: str | None = None
    """A .jsonl file of multiple-choice items (`question`, `choices`, `answer`: the index of the correct one), absolute
    or relative to the workspace; name it in dvc.yaml, too (`evaluation`, `deps`). None: no flips are counted."""
    batch_tokens: int = Field(default=4096, gt=0)
    base_logits_bytes: int = Field(default=4 * 2**30, ge=0)
    """Base logits up to this size are kept in memory and shared by every model of a run."""

    @field_validator("length_buckets")
    @classmethod
    def _ascend(cls, ends: tuple[int, ...]) -> tuple[int, ...]:
        if list(ends) != sorted({*ends}) or (ends and ends[0] < 1):
            raise ValueError(f"found {list(ends)}, expected positive numbers, ascending without repeats")
        return ends
