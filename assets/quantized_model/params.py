"""An entry under `schemes:` in params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SchemeParams(BaseModel):
    """A quantization scheme: method, bit widths, granularity.

    Raises:
        pydantic.ValidationError: the parts do not go together; the message says why and what to write instead. It is
            raised where params.yaml is read, before anything runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["minmax", "rtn", "gptq"]
    weight_bits: Literal[3, 4, 8] = 4
    group_size: int | None = Field(default=None, gt=0)
    """Input channels that share a scale; None: one scale per output channel. Where it does not divide the width, the
    largest divisor below it is used and named in the result."""
    activation_bits: Literal[8] | None = None
    """None: activations stay in the model's precision (A16). 8: static, symmetric, per tensor."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """GPTQ: share of the mean Hessian diagonal added to it."""
    block_size: int = Field(default=128, gt=0)
    """GPTQ: columns solved before the next ones are updated."""
    ignore: tuple[str, ...] = ("lm_head",)
    """Linears left in full precision: exact module names, or `re:` and a regular expression."""

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        if self.method == "minmax" and self.activation_bits is None:
            raise ValueError(
                "method minmax takes the range of the activations, but activation_bits is not set; for weights alone "
                "write method: rtn (the same rounding), for W8A8 add activation_bits: 8 and weight_bits: 8"
            )
        if self.method == "rtn" and self.activation_bits is not None:
            raise ValueError(
                "method rtn reads no statistics, so it has no range for activation_bits; write method: minmax, which "
                "rounds the weights alike and takes the activations' range from the statistics"
            )
        if self.activation_bits is not None and self.group_size is not None:
            raise ValueError(
                f"group_size {self.group_size} with activation_bits {self.activation_bits}: integer matrix products "
                "need one scale per output channel; remove group_size, or remove activation_bits"
            )
        if self.activation_bits is not None and self.weight_bits != 8:
            raise ValueError(
                f"weight_bits {self.weight_bits} with activation_bits {self.activation_bits}: the format for "
                "quantized activations stores 8-bit weights; write weight_bits: 8, or remove activation_bits"
            )
        if self.method != "gptq":
            for name in ("damping", "block_size"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} acts on method gptq only, not on {self.method}; remove it")
        return self
