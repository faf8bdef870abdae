"""An entry under `schemes:` in params.yaml."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plumbline.quantized_model.engine_remarks import engine_remarks
from plumbline.quantized_model.format_params import FormatParams
from plumbline.quantized_model.kv_cache_params import HOW_TO_SERVE, CacheParams

CORRECTION = 0.5
"""Default strength of the correction: benchmarks/rounders.py found 0.25 to 1 within a few per cent of each other."""
OverrideKind = Literal["attention", "state space", "mlp", "experts", "shared experts", "router", "vision", "audio"]


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


class SchemeParams(FormatParams):
    """A quantization scheme: bit widths, granularity, and how scales and codes are computed.

    Raises:
        pydantic.ValidationError: parameters contradict each other; the message says why and what to write instead. It
            is raised when params.yaml is read, before anything runs.
    """

    method: Literal["rtn", "gptq", "adaround"]
    """Round each weight to nearest, or a layer's weights jointly to minimize its output error."""
    overrides: dict[OverrideKind, FormatParams] = Field(default_factory=dict)
    """Formats of kinds of matrices that differ from the others: attention, mlp, experts, "shared experts" ..."""
    kv_cache: CacheParams | None = None
    """FP8 keys and values; None: cached in the model's precision."""
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
    loads_in: Literal["transformers", "vllm"] = "transformers"
    """"vllm": allow experts in NVFP4, whose global scales transformers 5.23 drops without a word; Plumbline's own
    evaluation reads them."""
    expert_floor: float = Field(default=0.0, ge=0)
    """GPTQ, AdaRound: an expert that fewer tokens reached than this share of its input channels is rounded to nearest,
    by the range of its weights."""

    @cached_property
    def own(self) -> dict[str, SchemeParams]:
        """The scheme of every kind in `overrides`: method and the like from here, the format from there."""
        of_the_model = {"overrides", "transform", "mixed", "kv_cache"}
        shared = {
            name: getattr(self, name) for name in self.model_fields_set - set(FormatParams.model_fields) - of_the_model
        }
        return {
            kind: SchemeParams.model_validate(shared | {name: getattr(part, name) for name in part.model_fields_set})
            for kind, part in self.overrides.items()
        }

    @property
    def all(self) -> tuple[SchemeParams, ...]:
        """This scheme and those of the overrides."""
        return (self, *self.own.values())

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts of the statistics that are read: "hessian" (second moments), "histogram", "sums", "ranges",
        "cache" (keys and values)."""
        static = [s.activations for s in self.all if s.activations is not None and s.activations.calibrated]
        is_read_by_part = {
            "hessian": self.method != "rtn" or self.mixed is not None or self.transform == "awq",
            "histogram": any(activations.range != "minmax" for activations in static),
            "sums": self.transform == "awq" or any(s.range == "imatrix" for s in self.all),
            "ranges": bool(static) or self.transform == "smoothquant",
        }
        cache = () if self.kv_cache is None else self.kv_cache.reads
        return tuple(dict.fromkeys([*(name for name, is_read in is_read_by_part.items() if is_read), *cache]))

    @property
    def remarks(self) -> list[str]:
        """Restrictions on where the quantized model runs (engine_remarks.py)."""
        widths = {self.weight_bits} if self.mixed is None else set(self.mixed.widths)
        remarks = [
            remark for own in self.all for remark in engine_remarks(own, widths if own is self else {own.weight_bits})
        ]
        if self.loads_in == "vllm":
            remarks.append(
                "transformers 5.23 drops the global scales of NVFP4 experts (its issue 48371) and computes something "
                "else without a word: load the model in vLLM. Plumbline's evaluation reads the scales"
            )
        return list(dict.fromkeys(remarks + ([] if self.kv_cache is None else [HOW_TO_SERVE])))

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_method(cls, entry: Any) -> Any:
        """Fill in the defaults that depend on other fields, so that a record of the scheme holds what was used."""
        if not isinstance(entry, dict):
            return entry
        method = entry.get("method")
        defaults = _range_of_method(entry, method)
        if method == "gptq":
            defaults["act_order"] = True
        overrides = entry.get("overrides")
        if isinstance(overrides, dict):
            entry = entry | {
                "overrides": {
                    kind: _range_of_method(part, method) | part if isinstance(part, dict) else part
                    for kind, part in overrides.items()
                }
            }
        if entry.get("propagate") == "quantized":
            defaults["correction"] = CORRECTION
        return defaults | entry

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        self._require_one_layout()
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
                "range: mse, range: imatrix, or method: gptq"
            )
        if self.range == "imatrix" and self.method != "rtn":
            raise ValueError(
                f"range: imatrix is for rounding to nearest; method: {self.method} knows better what a channel's error "
                "costs: write range: hessian"
            )
        if self.transform != "smoothquant" and self.smoothing != type(self).model_fields["smoothing"].default:
            raise ValueError("smoothing acts on transform: smoothquant only; remove it")
        return self

    def _require_one_layout(self) -> None:
        """Refuse widths or formats per layer together with what transformers reads for one layout of all layers."""
        if self.mixed is not None and not self.symmetric:
            raise ValueError(
                "symmetric: false with mixed: transformers reads packed zero points only where all layers have one "
                "width and one group size; remove symmetric, or give one weight_bits"
            )
        if self.mixed is not None and self.activations is not None:
            raise ValueError(
                "quantized activations with weights of another width than 8: mixed gives every layer its own width; "
                "remove mixed, or remove activations"
            )
        if self.mixed is not None and self.weight_type != "int":
            raise ValueError(
                f"mixed with weight_type: {self.weight_type}: mixed chooses between widths of integers; remove one of "
                "them, or give kinds of matrices their formats by overrides"
            )
        if not self.overrides:
            return
        if self.mixed is not None or self.transform is not None:
            other = "mixed" if self.mixed is not None else f"transform: {self.transform}"
            raise ValueError(f"overrides with {other}, which treats all layers alike; remove one of them")
        for kind, own in self.own.items():
            if not (self.symmetric and own.symmetric):
                raise ValueError(
                    f"overrides.{kind} with symmetric: false: transformers reads packed zero points only where all "
                    "layers have one width and one group size; remove symmetric"
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


def _range_of_method(entry: dict[str, Any], method: Any) -> dict[str, Any]:
    """The defaults of the range of weights that follow from the method and the format."""
    if method not in ("gptq", "adaround"):
        return {}
    few = entry.get("weight_type", "int") == "int" and (entry.get("weight_bits", 4) != 8 or entry.get("mixed"))
    signed = entry.get("symmetric", True) is True and entry.get("activations") is None and bool(few)
    return {"range": "hessian", "signed_scale": signed}
