"""Text of `plumbline schemes`: the schemes of params.yaml in words, and the fields of a scheme."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping

import yaml

from plumbline.calibration_report.glossary import describe_scheme, own_size
from plumbline.quantized_model.params import SchemeParams

WIDTH = 100
PARTS = {
    "method": "rtn (round to nearest), gptq, adaround: how codes are chosen",
    "weight_type": "int, fp8, nvfp4, mxfp4, mxfp8",
    "weight_bits": "int: 2, 3, 4 or 8; or mixed: {average_bits: 3.5} for widths per layer by sensitivity",
    "group_size": "weights that share a scale, e.g. 128; default: one scale per output channel",
    "per_tensor": "true: one scale for the whole weight",
    "block_structure": "fp8: [128, 128], one scale per block",
    "symmetric": "false: with a zero point per scale",
    "signed_scale": "scales may be negative: the longer side gets the extra code; gptq, adaround: true",
    "range": "minmax (rtn), percentile (percentile: 99.9), mse, imatrix, hessian (others)",
    "activations": "{type: int | fp8 | …, range: minmax | percentile | mse}; {dynamic: true}",
    "overrides": "formats by kind, such as {attention: {weight_type: fp8}}",
    "kv_cache": "FP8: {strategy: tensor | attn_head, range: minmax | percentile | unit}",
    "transform": "smoothquant (with smoothing: 0.5; for activations) or awq (for weights only)",
    "act_order": "gptq: columns with the largest Hessian diagonal first; true",
    "damping": "gptq, adaround: fraction of the mean Hessian diagonal to add to it, 0.01",
    "block_size": "gptq: columns per update; affects speed, not results",
    "propagate": "gptq: quantized reruns the samples, each layer on the outputs of the quantized ones",
    "correction": "propagate: fraction of the error behind quantized layers that weights undo, 0.5",
    "ignore": "matrices kept in full precision: names, or re: and a regular expression; [lm_head]",
    "include": "kinds that are otherwise left alone: router, vision, audio; []",
    "experts": "quantized or full_precision",
    "loads_in": "transformers, or vllm: allow NVFP4 experts, which transformers 5.23 reads wrong",
    "expert_floor": "gptq, adaround: least tokens of an expert, as a fraction of its input channels; 0",
}
"""One line per field of `SchemeParams`; a test compares the two."""


def list_schemes(schemes: Mapping[str, SchemeParams], grid: Collection[str]) -> str:
    """Format a line per scheme (* for those of the grid) and per field, at most `WIDTH` characters wide."""
    column = max(map(len, schemes)) + 3
    lines = []
    for name, scheme in schemes.items():
        lines.append(f"{name + (' *' if name in grid else ''):{column}}{_in_short(scheme)}")
    lines += ["", "* in the grid: built by plumbline run. Fields of an entry under schemes:"]
    lines += [f"{part:15} {line}" for part, line in PARTS.items()]
    return "\n".join([*lines, "", "plumbline schemes NAME   one scheme with all its defaults, in words"])


def show_scheme(name: str, scheme: SchemeParams) -> str:
    """Format the entry with every default, its description, and where it runs."""
    entry = yaml.safe_dump(
        {name: scheme.model_dump(mode="json")}, default_flow_style=None, sort_keys=False, width=WIDTH
    )
    paragraphs = [in_words(scheme), *(f"{remark}." for remark in scheme.remarks)]
    return "\n\n".join([entry.rstrip(), *(textwrap.fill(text, WIDTH) for text in paragraphs)])


def in_words(scheme: SchemeParams) -> str:
    """Describe a scheme as the report does, without a model."""
    entry = scheme.model_dump(mode="json")
    return describe_scheme(entry, own_size(entry), {})


def _usual(scheme: SchemeParams) -> SchemeParams:
    """A scheme with the defaults that follow from its method and grid."""
    bits = {"mixed": scheme.mixed} if scheme.mixed is not None else {"weight_bits": scheme.weight_bits}
    part = {
        "method": scheme.method,
        "weight_type": scheme.weight_type,
        "block_structure": scheme.block_structure,
        "symmetric": scheme.symmetric,
        "activations": scheme.activations,
    }
    return SchemeParams.model_validate(part | bits)


def _in_short(scheme: SchemeParams) -> str:
    bits = f"{scheme.weight_bits}-bit" if scheme.mixed is None else f"{scheme.mixed.average_bits:g}-bit (mean)"
    bits = bits if scheme.weight_type == "int" else scheme.weight_type.upper()
    scales = (
        "per tensor" if scheme.per_tensor else f"groups of {scheme.group_size}" if scheme.group_size else "channels"
    )
    scales = scales if scheme.block_structure is None else "blocks"
    parts = [f"{bits} weights, {scales}"]
    parts += [] if scheme.symmetric else ["zero points"]
    usual = _usual(scheme)
    if scheme.signed_scale != usual.signed_scale:
        parts.append("signed scales" if scheme.signed_scale else "unsigned")
    parts += [] if scheme.range == usual.range else [f"range {scheme.range}"]
    if scheme.activations is not None:
        own = scheme.activations
        kind = "per group" if own.group_size else "per token" if own.dynamic else f"static, {own.range}"
        parts.append(f"{'8-bit' if own.type == 'int' else own.type.upper()} activations {kind}")
    parts += [f"{kind} {part.weight_type.upper()}" for kind, part in scheme.overrides.items()]
    if scheme.kv_cache is not None:
        parts.append(f"FP8 cache per {'layer' if scheme.kv_cache.strategy == 'tensor' else 'head'}")
    order = "" if scheme.act_order == usual.act_order else ", columns in order"
    again = ", propagated" if scheme.propagate == "quantized" else ""
    return f"{', '.join(parts)}; {scheme.transform + ' + ' if scheme.transform else ''}{scheme.method}{order}{again}"
