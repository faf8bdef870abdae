"""`deployment:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DeploymentParams(BaseModel):
    """The scheme to deploy, and the conditions under which a candidate becomes the champion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: str
    """The best calibration choice under this scheme is the candidate."""
    max_worse: float = Field(default=0.01, ge=0)
    """Mean KL must be lower than the champion's, and the upper end of the paired interval at most this share of the
    champion's KL above it. (Confidence of the interval: report.confidence.)"""
    max_fallbacks: int = Field(default=0, ge=0)
    """Largest number of layers that were not quantized by the scheme's method."""
    max_megabytes: float | None = Field(default=None, gt=0)
    """Largest size of the weights on disk (10^6 bytes); None: the weights must be smaller than the base model's."""
    min_share: float = Field(default=0.95, ge=0, le=1)
    """Least share of the matrices' weights that is quantized, without embeddings, head, routers and towers."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Two texts are near-duplicates if the shorter one shares at least this share of its 13-grams."""
    max_near_duplicates: float = Field(default=0.0, ge=0, le=1)
    """Largest share of the report split's documents that are near-duplicates of a calibration sample."""
    serving: str | None = None
    """Folder of the tokenizer used in production; None: the candidate's own folder."""
