"""An entry under `schemes:` in params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SchemeParams(BaseModel):
    """A quantization scheme: method, bit widths, granularity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["minmax", "rtn", "gptq"]
    weight_bits: Literal[3, 4, 8] = 4
    group_size: int | None = Field(default=None, gt=0)
    """Input channels that share a scale; None: one scale per output channel. Where it does not divide the width, the
    largest divisor below it is used and named in the result."""
    activation_bits: Literal[8] | None = None
    """None: activations stay in the model's precision (A16). 8: static, symmetric, per tensor."""
    damping: float = Field(default=0.01, gt=0)
    """GPTQ: share of the mean Hessian diagonal added to it."""
    block_size: int = Field(default=128, gt=0)
    """GPTQ: columns solved before the rest of the matrix is updated."""
    ignore: tuple[str, ...] = ("lm_head",)
