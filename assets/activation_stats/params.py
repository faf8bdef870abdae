"""`statistics:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class StatisticsParams(BaseModel):
    """What is collected about the input of every Linear."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hessian: bool = True
    mantissa_bits: int = Field(default=4, ge=0, le=7)
    """Resolution of the bfloat16 histogram: a percentile is off by at most 2^-(m+1) relative."""
    top_k: int = Field(default=8, ge=1)
    """Largest magnitudes kept per site with the sample that caused each."""
    ignore: tuple[str, ...] = ("lm_head",)
