"""An entry under `schemes:` in params.yaml."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RangeRule = Literal["minmax", "percentile", "mse"]
WeightRangeRule = Literal["minmax", "percentile", "mse", "hessian"]

CORRECTION = 0.5
"""Default strength of the correction: benchmarks/rounders.py found 0.25 to 1 within a few per cent of each other."""


class ActivationParams(BaseModel):
    """Rounding of the input of every quantized Linear at run time.

    Raises:
        pydantic.ValidationError: parameters contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: Literal[8] = 8
    dynamic: bool = False
    """True: a scale per token, computed at run time. False: one per tensor, from the statistics."""
    symmetric: bool = True
    range: RangeRule = "minmax"
    """Static scales: the whole range, the range up to `percentile`, or that of least squared error."""
    percentile: float = Field(default=99.99, gt=50, le=100)

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        _require_percentile_acts(self, "activations.")
        if self.dynamic and self.range != "minmax":
            raise ValueError(
                f"activations.range {self.range} with dynamic: true: a dynamic scale is computed per token at run time "
                "and reads no statistics; remove range, or remove dynamic"
            )
        if self.dynamic and not self.symmetric:
            raise ValueError(
                "activations.symmetric: false with dynamic: true: per-token scales are symmetric in kernels; remove one"
            )
        return self


class MixedParams(BaseModel):
    """Bits per layer under a budget, by the measured sensitivity of each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    average_bits: float = Field(gt=2, lt=8)
    """Average over all quantized weights, of codes only; scales come on top."""
    widths: tuple[Literal[2, 3, 4, 8], ...] = (2, 3, 4, 8)

    @model_validator(mode="after")
    def _within_reach(self) -> Self:
        if len(set(self.widths)) < max(2, len(self.widths)):
            raise ValueError(f"mixed.widths {list(self.widths)}: name two or more different widths")
        if not min(self.widths) <= self.average_bits <= max(self.widths):
            raise ValueError(
                f"mixed.average_bits {self.average_bits:g} is not between the widths {sorted(self.widths)}; change one"
            )
        return self


class SchemeParams(BaseModel):
    """A quantization scheme: bit widths, granularity, and how scales and codes are computed.

    Raises:
        pydantic.ValidationError: parameters contradict each other; the message says why and what to write instead. It
            is raised when params.yaml is read, before anything runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["rtn", "gptq", "adaround"]
    """Round each weight to nearest, or a layer's weights jointly to minimize its output error."""
    weight_bits: Literal[2, 3, 4, 8] = 4
    group_size: int | None = Field(default=None, gt=0)
    """Input channels that share a scale; None: one scale per output channel. Where it does not divide the width, the
    largest divisor below it is used and named in the result."""
    per_tensor: bool = False
    """One scale for the whole weight."""
    symmetric: bool = True
    """False: a zero point beside each scale."""
    signed_scale: bool = False
    """Symmetric weights alone: a negative scale where the weights reach further to the positive side, so that the code
    that a symmetric grid has on one side only is there. GPTQ, AdaRound: true if the scheme allows it."""
    range: WeightRangeRule = "minmax"
    """Range of the weights that share a scale; "hessian": of least error weighted by what GPTQ cannot compensate, which
    is the default of GPTQ and AdaRound."""
    percentile: float = Field(default=99.9, gt=50, le=100)
    activations: ActivationParams | None = None
    """None: activations stay in the model's precision (A16)."""
    transform: Literal["smoothquant", "awq"] | None = None
    """Channel scales moved from activations into weights before rounding, and folded into the producers."""
    smoothing: float = Field(default=0.5, ge=0, le=1)
    """SmoothQuant: alpha, the share of the range that moves into the weights."""
    mixed: MixedParams | None = None
    """Bits per layer, instead of `weight_bits`."""
    propagate: Literal["full_precision", "quantized"] = "full_precision"
    """GPTQ: "quantized" collects the statistics of each layer again, behind the quantized layers before it."""
    correction: float = Field(default=0.0, ge=0, le=1)
    """`propagate: quantized`: share of the error behind the earlier layers that the weights undo before they are
    rounded; 0.5 by default, 0 is plain GPTQ."""
    act_order: bool = False
    """GPTQ: columns in descending order of the Hessian's diagonal; true by default there."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """GPTQ and AdaRound: share of the mean Hessian diagonal added to it."""
    block_size: int = Field(default=128, gt=0)
    """GPTQ: columns solved before the next ones are updated."""
    ignore: tuple[str, ...] = ("lm_head",)
    """Matrices left in full precision: exact module names, or `re:` and a regular expression."""
    include: tuple[Literal["router", "vision", "audio"], ...] = ()
    """Kinds of matrices that are quantized, too; without it they are left alone."""
    experts: Literal["quantized", "full_precision"] = "quantized"
    """"quantized" is refused where transformers cannot read quantized experts; "full_precision" leaves them alone."""
    expert_floor: float = Field(default=0.0, ge=0)
    """GPTQ, AdaRound: an expert that fewer tokens reached than this share of its input channels is rounded to nearest,
    by the range of its weights."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts of the statistics that are read: "hessian" (second moments), "histogram", "sums", "ranges"."""
        static = self.activations is not None and not self.activations.dynamic
        is_read_by_part = {
            "hessian": self.method != "rtn" or self.mixed is not None or self.transform == "awq",
            "histogram": static and self.activations is not None and self.activations.range != "minmax",
            "sums": self.transform == "awq",
            "ranges": static or self.transform == "smoothquant",
        }
        return tuple(name for name, is_read in is_read_by_part.items() if is_read)

    @property
    def remarks(self) -> list[str]:
        """Restrictions on where the quantized model runs; transformers loads all of them."""
        remarks = []
        widths = {self.weight_bits} if self.mixed is None else set(self.mixed.widths)
        if self.activations is None and not widths <= {4, 8}:
            remarks.append("vLLM has kernels for packed weights of 4 and 8 bits; other widths load in transformers")
        if self.activations is None and self.per_tensor:
            remarks.append("vLLM reads packed weights with a scale per group or output channel, not per tensor")
        if self.activations is not None and not self.symmetric:
            remarks.append("vLLM reads 8-bit weights beside quantized activations without zero points only")
        if self.activations is not None and not self.activations.symmetric:
            remarks.append("vLLM calls static activations with a zero point implemented, but untested")
        return remarks

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_method(cls, entry: Any) -> Any:
        """Fill in the defaults that depend on other fields, so that a record of the scheme holds what was used."""
        if not isinstance(entry, dict):
            return entry
        defaults: dict[str, Any] = {}
        if entry.get("method") in ("gptq", "adaround"):
            eight = entry.get("weight_bits", 4) == 8 and entry.get("mixed") is None
            signed = entry.get("symmetric", True) is True and entry.get("activations") is None and not eight
            defaults |= {"range": "hessian", "signed_scale": signed, "act_order": entry["method"] == "gptq"}
        if entry.get("propagate") == "quantized":
            defaults["correction"] = CORRECTION
        return defaults | entry

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        _require_percentile_acts(self, "")
        self._require_granularity_suits()
        self._require_percentile_leaves_something_out()
        self._require_zero_points_load()
        self._require_transform_suits()
        if self.mixed is not None and "weight_bits" in self.model_fields_set:
            raise ValueError("weight_bits and mixed: mixed gives every layer its own width; remove one of them")
        for name, methods in (
            ("act_order", ("gptq",)),
            ("block_size", ("gptq",)),
            ("propagate", ("gptq",)),
            ("damping", ("gptq", "adaround")),
        ):
            if self.method not in methods and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} acts on method {' and '.join(methods)} only, not on {self.method}; remove it")
        if self.correction and self.propagate != "quantized":
            raise ValueError("correction acts with propagate: quantized only; remove it, or add propagate: quantized")
        if self.range == "hessian" and self.method == "rtn":
            raise ValueError(
                "range: hessian weighs channels by the factor of the Hessian, which method: rtn does not read; write "
                "range: mse, or method: gptq"
            )
        self._require_signed_scales_load()
        if self.transform != "smoothquant" and self.smoothing != type(self).model_fields["smoothing"].default:
            raise ValueError("smoothing acts on transform: smoothquant only; remove it")
        return self

    def _require_granularity_suits(self) -> None:
        if self.per_tensor and self.group_size is not None:
            raise ValueError(f"per_tensor: true with group_size {self.group_size}: remove one of them")
        if self.activations is not None and self.group_size is not None:
            raise ValueError(
                f"group_size {self.group_size} with quantized activations: integer matrix products need one scale "
                "per output channel; remove group_size, or remove activations"
            )
        if self.activations is not None and (self.weight_bits != 8 or self.mixed is not None):
            raise ValueError(
                "quantized activations with weights of another width than 8: the format stores 8-bit weights "
                "beside them; write weight_bits: 8 without mixed, or remove activations"
            )

    def _require_percentile_leaves_something_out(self) -> None:
        """Refuse groups of less than 1 / (1 - p) weights (asymmetric: 2 / (1 - p)): their p-quantile is the largest."""
        if self.range != "percentile" or self.group_size is None:
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
        if not self.symmetric:
            raise ValueError(
                "signed_scale: true with symmetric: false: a zero point places the grid already; remove one of them"
            )
        if self.activations is not None:
            raise ValueError(
                "signed_scale: true with quantized activations: kernels for integer products may require positive "
                "scales, and 8-bit weights gain nothing; remove signed_scale"
            )

    def _require_zero_points_load(self) -> None:
        if self.symmetric:
            return
        if self.mixed is not None:
            raise ValueError(
                "symmetric: false with mixed: transformers reads packed zero points only where all layers have one "
                "width and one group size; remove symmetric, or give one weight_bits"
            )

    def _require_transform_suits(self) -> None:
        if self.transform == "smoothquant" and self.activations is None:
            raise ValueError(
                "transform: smoothquant moves range from quantized activations into the weights, and this scheme "
                "quantizes no activations; add activations, or write transform: awq"
            )
        if self.transform == "awq" and self.activations is not None:
            raise ValueError(
                "transform: awq searches scales for the error of the weights alone; with quantized activations write "
                "transform: smoothquant"
            )
        if self.transform == "awq" and self.weight_bits == 8 and self.mixed is None:
            raise ValueError(
                "transform: awq with weight_bits: 8: rounding to 8 bits leaves it nothing to gain; remove transform, "
                "or write fewer than 8 bits"
            )
        if self.transform is not None and self.propagate == "quantized":
            raise ValueError(
                f"transform: {self.transform} with propagate: quantized: the scales come from statistics of the "
                "full-precision model; remove one of them"
            )


def _require_percentile_acts(params: ActivationParams | SchemeParams, prefix: str) -> None:
    if params.range != "percentile" and params.percentile != type(params).model_fields["percentile"].default:
        raise ValueError(f"{prefix}percentile acts with {prefix}range: percentile only; remove it")
