"""Rounding of activations: an entry `activations:` of a scheme."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RangeRule = Literal["minmax", "percentile", "mse", "constant"]
ActivationType = Literal["int", "fp8", "nvfp4", "mxfp4", "mxfp8"]
BITS: dict[str, Literal[4, 8]] = {"fp8": 8, "nvfp4": 4, "mxfp4": 4, "mxfp8": 8}
"""Width of the types that fix it, of activations and of weights."""
GROUP_SIZES = {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32}
"""Channels that share a scale in the types that fix this number."""


class ActivationParams(BaseModel):
    """Rounding of the input of every quantized Linear at run time.

    Raises:
        pydantic.ValidationError: parameters contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: ActivationType = "int"
    """Integers; FP8 E4M3; or a format with scales per group: NVFP4, MXFP4, MXFP8."""
    bits: Literal[4, 8] = 8
    """4 for nvfp4 and mxfp4."""
    dynamic: bool = False
    """True: a scale per token (or group of a token), computed at run time. False: one per tensor, from the statistics;
    nvfp4: a global scale from the statistics, and scales per group at run time. mxfp4 and mxfp8 are dynamic."""
    group_size: int | None = Field(default=None, gt=0)
    """Dynamic fp8: channels of a token that share a scale, 128 beside weights in blocks; None: all of them."""
    symmetric: bool = True
    range: RangeRule = "minmax"
    """Static scales: the whole range, the range up to `percentile`, or that of least squared error; nvfp4: the whole
    range, or constant, a global scale of 1 without statistics."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    headroom: float = Field(default=1.0, ge=1, le=64)
    """nvfp4: how many times the largest magnitude of the calibration set the global scale leaves room for."""

    @property
    def static(self) -> bool:
        """Whether the model stores a scale of its activations."""
        return not self.dynamic

    @property
    def calibrated(self) -> bool:
        """Whether a scale comes from the statistics."""
        return self.static and self.range != "constant"

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_type(cls, entry: Any) -> Any:
        entry = with_defaults_of_type(entry, "type", "bits")
        dynamic = isinstance(entry, dict) and entry.get("type") in ("mxfp4", "mxfp8")
        return {"dynamic": True} | entry if dynamic else entry

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        require_percentile_acts(self, "activations.")
        expected = BITS.get(self.type, 8)
        if self.bits != expected:
            raise ValueError(
                f"activations.bits {self.bits} with type: {self.type}: it has {expected} bits; remove bits"
            )
        self._require_groups_suit()
        if self.dynamic and self.range != "minmax":
            raise ValueError(
                f"activations.range {self.range} with dynamic: true: a dynamic scale is computed per token at run time "
                "and reads no statistics; remove range, or remove dynamic"
            )
        if self.dynamic and not self.symmetric:
            raise ValueError(
                "activations.symmetric: false with dynamic: true: per-token scales are symmetric in kernels; remove one"
            )
        if self.type != "int" and not self.symmetric:
            raise ValueError(
                f"activations.symmetric: false with type: {self.type}: floating-point numbers have no zero point; "
                "remove symmetric"
            )
        if self.headroom != 1 and self.type != "nvfp4":
            raise ValueError("activations.headroom acts on type: nvfp4 only; remove it")
        return self

    def _require_groups_suit(self) -> None:
        size = GROUP_SIZES.get(self.type)
        if size is not None and self.group_size != size:
            raise ValueError(
                f"activations.group_size {self.group_size} with type: {self.type}: its groups have {size} channels; "
                "remove group_size"
            )
        if size is None and self.group_size is not None and not (self.type == "fp8" and self.dynamic):
            raise ValueError(
                "activations.group_size acts on type: fp8 with dynamic: true only, where kernels read groups of a "
                "token; remove it"
            )
        if self.type in ("mxfp4", "mxfp8") and not self.dynamic:
            raise ValueError(f"activations.dynamic: false with type: {self.type}: its scales are computed at run time")
        if self.type == "nvfp4" and self.dynamic:
            raise ValueError(
                "activations.dynamic: true with type: nvfp4: its global scale comes from the statistics; remove dynamic"
            )
        if self.type != "nvfp4" and self.range == "constant":
            raise ValueError("activations.range: constant acts on type: nvfp4 only; write another range")
        if self.type == "nvfp4" and self.range not in ("minmax", "constant"):
            raise ValueError(
                f"activations.range: {self.range} with type: nvfp4: a global scale that leaves out the largest values "
                "makes the E4M3 scales of their groups saturate, which costs 1 to 25 dB; write range: minmax"
            )


def with_defaults_of_type(entry: Any, type_field: str, bits_field: str) -> Any:
    """An entry of params.yaml with the width and group size that its type fixes, where it does not name them."""
    if not isinstance(entry, dict):
        return entry
    type_ = entry.get(type_field, "int")
    fixed = {bits_field: BITS.get(type_), "group_size": GROUP_SIZES.get(type_)}
    return {name: value for name, value in fixed.items() if value is not None} | entry


def require_percentile_acts(params: Any, prefix: str) -> None:
    """Refuse a percentile that the rule of the range does not read.

    Raises:
        ValueError: says which line to remove.
    """
    if params.range != "percentile" and params.percentile != type(params).model_fields["percentile"].default:
        raise ValueError(f"{prefix}percentile acts with {prefix}range: percentile only; remove it")
