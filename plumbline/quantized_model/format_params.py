"""How weights are stored and activations rounded: the part of a scheme that a kind of matrices may have of its own."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plumbline.quantized_model.activation_params import (
    BITS,
    GROUP_SIZES,
    ActivationParams,
    require_percentile_acts,
    with_defaults_of_type,
)

WeightRangeRule = Literal["minmax", "percentile", "mse", "imatrix", "hessian"]
WeightType = Literal["int", "fp8", "nvfp4", "mxfp4", "mxfp8"]


class FormatParams(BaseModel):
    """How weights are stored and activations rounded.

    Raises:
        pydantic.ValidationError: parameters contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight_type: WeightType = "int"
    """Integers of `weight_bits`; FP8 E4M3; or FP4 and FP8 with a scale per group: NVFP4, MXFP4, MXFP8."""
    weight_bits: Literal[2, 3, 4, 8] = 4
    group_size: int | None = Field(default=None, gt=0)
    """Input channels that share a scale; None: one scale per output channel. Where it does not divide the width, the
    largest divisor below it is used and named in the result. nvfp4 has 16, mxfp4 and mxfp8 have 32."""
    per_tensor: bool = False
    """One scale for the whole weight."""
    block_structure: tuple[Literal[128], Literal[128]] | None = None
    """fp8: (output, input) channels of a block that shares a scale."""
    symmetric: bool = True
    """False: a zero point beside each scale."""
    signed_scale: bool = False
    """Symmetric integers alone: a negative scale where the weights reach further to the positive side, so that the code
    that a symmetric grid has on one side only is there. GPTQ, AdaRound: true if the scheme allows it."""
    range: WeightRangeRule = "minmax"
    """Range of the weights that share a scale; "imatrix": of least error weighted by E[x^2], for rounding to nearest;
    "hessian": weighted by what GPTQ cannot compensate, the default of GPTQ and AdaRound."""
    percentile: float = Field(default=99.9, gt=50, le=100)
    activations: ActivationParams | None = None
    """None: activations stay in the model's precision (A16)."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_type(cls, entry: Any) -> Any:
        return with_defaults_of_type(entry, "weight_type", "weight_bits")

    @model_validator(mode="after")
    def _format_is_possible(self) -> Self:
        require_percentile_acts(self, "")
        self._require_granularity_suits()
        if self.activations is not None:
            self._require_activations_suit(self.activations)
        self._require_percentile_leaves_something_out()
        self._require_signed_scales_load()
        if not self.symmetric and self.weight_type != "int":
            raise ValueError(
                f"symmetric: false with weight_type: {self.weight_type}: floating-point numbers have no zero point; "
                "remove symmetric"
            )
        return self

    def _require_granularity_suits(self) -> None:
        type_ = self.weight_type
        if type_ in BITS and self.weight_bits != BITS[type_]:
            raise ValueError(
                f"weight_bits {self.weight_bits} with weight_type: {type_}: it has {BITS[type_]}; remove it"
            )
        if type_ in GROUP_SIZES and self.group_size != GROUP_SIZES[type_]:
            raise ValueError(
                f"group_size {self.group_size} with weight_type: {type_}: its groups have {GROUP_SIZES[type_]} "
                "weights; remove group_size"
            )
        if type_ == "fp8" and self.group_size is not None:
            raise ValueError(
                f"group_size {self.group_size} with weight_type: fp8: its scales are per output channel, per tensor "
                "(per_tensor: true) or per block (block_structure: [128, 128]); remove group_size"
            )
        if self.block_structure is not None and type_ != "fp8":
            raise ValueError("block_structure acts on weight_type: fp8 only; remove it")
        if self.per_tensor and (self.group_size is not None or self.block_structure is not None):
            other = "block_structure" if self.group_size is None else f"group_size {self.group_size}"
            raise ValueError(f"per_tensor: true with {other}: remove one of them")

    def _require_activations_suit(self, activations: ActivationParams) -> None:
        """Refuse pairs of weights and activations that no engine multiplies."""
        pairs = {
            "int": ("int", "fp8"),
            "fp8": ("fp8",),
            "nvfp4": ("nvfp4",),
            "mxfp4": ("mxfp4", "fp8"),
            "mxfp8": ("mxfp8",),
        }
        if activations.type not in pairs[self.weight_type]:
            raise ValueError(
                f"activations of type {activations.type} with weights of type {self.weight_type}: engines multiply "
                f"{self.weight_type} weights with activations of type {' or '.join(pairs[self.weight_type])}; write "
                "one of them, or remove activations"
            )
        grouped = activations.group_size is not None and activations.type == "fp8"
        needs_groups = self.block_structure is not None or self.weight_type == "mxfp4"
        if activations.type == "fp8" and grouped != needs_groups:
            what = "weights in blocks" if self.block_structure is not None else "mxfp4 weights"
            raise ValueError(
                f"fp8 activations beside {what} have a scale per 128 channels of a token; write activations: {{type: "
                "fp8, dynamic: true, group_size: 128}"
                if needs_groups
                else "activations.group_size with these weights: kernels read it beside fp8 weights in blocks (block_"
                "structure: [128, 128]) and mxfp4 weights; remove it"
            )
        if self.weight_type == "int":
            self._require_integer_products(activations)

    def _require_integer_products(self, activations: ActivationParams) -> None:
        if activations.type == "fp8":
            if self.weight_bits != 4 or not self.symmetric or not activations.dynamic:
                raise ValueError(
                    "fp8 activations with integer weights: engines have W4AFP8 alone; write weight_bits: 4 without "
                    "zero points and activations: {type: fp8, dynamic: true}, or weight_type: fp8"
                )
            return
        if self.weight_bits == 8 and self.group_size is not None:
            raise ValueError(
                f"group_size {self.group_size} with quantized activations: integer matrix products need one scale "
                "per output channel; remove group_size, or remove activations"
            )
        if self.weight_bits == 8:
            return
        if self.weight_bits != 4 or not activations.dynamic or not self.symmetric or self.per_tensor:
            raise ValueError(
                "quantized activations with weights of another width than 8: engines have weights of 4 bits, without "
                "zero points, beside dynamic activations (W4A8); write weight_bits: 8, or weight_bits: 4 with "
                "activations: {dynamic: true}, or remove activations"
            )

    def _require_percentile_leaves_something_out(self) -> None:
        """Refuse groups of less than 1 / (1 - p) weights (asymmetric: 2 / (1 - p)): their p-quantile is the largest."""
        if self.range != "percentile":
            return
        if self.weight_type == "nvfp4":
            raise ValueError(
                "range: percentile with weight_type: nvfp4: a group has 16 weights, of which a percentile leaves out "
                "none; write range: mse"
            )
        if self.group_size is None:
            return
        left_out = (100 - Fraction(repr(self.percentile))) / (1 if self.symmetric else 2)
        if left_out * self.group_size < 100:
            fewest = f"in groups of {math.ceil(100 / left_out)} weights or more" if left_out else "below 100"
            raise ValueError(
                f"range: percentile with percentile {self.percentile:g} and group_size {self.group_size}: it clips "
                f"something only {fewest}; lower the percentile, make groups larger, or write range: mse"
            )

    def _require_signed_scales_load(self) -> None:
        if not self.signed_scale:
            return
        if self.weight_type != "int":
            raise ValueError(
                f"signed_scale: true with weight_type: {self.weight_type}: floating-point numbers reach as far to "
                "either side; remove signed_scale"
            )
        if not self.symmetric:
            raise ValueError(
                "signed_scale: true with symmetric: false: a zero point places the grid already; remove one of them"
            )
        if self.activations is not None:
            raise ValueError(
                "signed_scale: true with quantized activations: kernels for integer products may require positive "
                "scales, and 8-bit weights gain nothing; remove signed_scale"
            )
