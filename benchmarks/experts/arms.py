"""The models that the study compares, all of one mixture, one calibration set and one width.

The dense matrices are the same in all of them: GPTQ from the statistics of the calibration set, in which the policy
changes those of experts alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from transformers import PreTrainedModel

from plumbline.activation_stats.multi_set import SetTotals, collect_together
from plumbline.activation_stats.params import ExpertTokens
from plumbline.base_model.inputs import EXPERT
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model

GROUP = 32
ROUTED, RTN = "gptq, routed", "rtn, mse"
POLICIES: dict[str, Literal["routed", "all"] | ExpertTokens] = {
    ROUTED: "routed",
    "gptq, all": "all",
    "gptq, at_least: 32": ExpertTokens(at_least=32),
}
FLOORS = (0.25, 1.0)
FLOORED = tuple(f"{ROUTED}, expert_floor: {floor:g}" for floor in FLOORS)
ARMS = (*POLICIES, RTN, *FLOORED)
"""Names of the models, the baseline first."""


def scheme(bits: int, **changes: object) -> SchemeParams:
    """GPTQ by default."""
    return SchemeParams.model_validate({"method": "gptq", "weight_bits": bits, "group_size": GROUP, **changes})


def statistics(model: PreTrainedModel, samples: Mapping[str, Sequence[int]]) -> dict[str, SetTotals]:
    """The statistics of a calibration set under each policy."""
    return {
        name: collect_together(model, samples, [list(samples)], ["lm_head"], experts=policy)[0]
        for name, policy in POLICIES.items()
    }


def experts_to_nearest(model: PreTrainedModel, stats: SetTotals, bits: int) -> dict[str, dict[str, Layer]]:
    """Experts that are rounded to nearest: by their least squared error, and as under `expert_floor`.

    Neither reads statistics, so one calculation serves every calibration set.

    Args:
        stats: of any calibration set.
    """
    schemes = {"mse": scheme(bits, method="rtn", range="mse"), "floor": scheme(bits, expert_floor=float(2**40))}
    parts = {name: quantize_model(model, stats, entry, errors=False).layers for name, entry in schemes.items()}
    return {name: {key: part[key] for key in part if EXPERT.search(key)} for name, part in parts.items()}


def starved(model: PreTrainedModel, stats: SetTotals, floor: float) -> set[str]:
    """The expert matrices that fewer tokens reached than this share of their input channels."""
    tokens = dict.fromkeys(stats.unreached, 0.0)
    for site in stats.sites.values():
        tokens |= dict.fromkeys(site.members, site.tokens / site.width)
    return {name for name, per_channel in tokens.items() if EXPERT.search(name) and per_channel < floor}


def models(
    model: PreTrainedModel,
    stats: Mapping[str, SetTotals],
    bits: int,
    nearest: Mapping[str, Mapping[str, Layer]],
    factors: Mapping[str, Factors],
) -> Iterator[tuple[str, Quantized, int]]:
    """Name, model, and number of expert matrices rounded to nearest of each of `ARMS`.

    Args:
        stats: by policy.
        nearest: from `experts_to_nearest`.
        factors: a cache by policy, shared between widths.
    """
    routed: Quantized | None = None
    for name, totals in stats.items():
        quantized = quantize_model(model, totals, scheme(bits), factors[name], errors=False)
        yield name, quantized, sum(layer.fallback is not None for layer in quantized.layers.values())
        routed = quantized if name == ROUTED else routed
    assert routed is not None
    yield RTN, Quantized({**routed.layers, **nearest["mse"]}), len(nearest["mse"])
    for name, floor in zip(FLOORED, FLOORS, strict=True):
        low = starved(model, stats[ROUTED], floor)
        layers = {**routed.layers, **{key: nearest["floor"][key] for key in sorted(low)}}
        yield name, Quantized(layers), len(low)
