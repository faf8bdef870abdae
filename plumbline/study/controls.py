"""The controls of every study: no calibration, nonsense, and texts of the evaluated split.

They show whether the study can detect a difference, and how large an improvement is possible. If random text is no
better than nonsense, no rule can matter; if the oracle is no better than random, no rule can gain much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from plumbline.calibration_set.methods.quotas import apportion
from plumbline.calibration_set.strategies.base import generator, sample_id
from plumbline.evaluation.held_out import HeldOut
from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.kv_cache_params import CacheParams
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.params import NONSENSE, ORACLE
from plumbline.tokenized_samples.reader import read_samples

FORMAT = (
    "weight_type", "group_size", "per_tensor", "block_structure", "symmetric", "signed_scale", "percentile",
)  # fmt: skip
"""Fields of a scheme that say how its weights are stored, and need no calibration data."""


def without_calibration(scheme: SchemeParams) -> SchemeParams | None:
    """The scheme without calibration data; None if it reads none.

    Weights are rounded to nearest on the scheme's own grid (numbers, group size, symmetry, sign, range; mse for a range
    that reads the Hessian). Static activation scales, which need texts, become dynamic ones, a scale per token at run
    time, and the global scale of NVFP4 activations becomes 1, as do the scales of keys and values (which engines take
    where a checkpoint has none). Mixed bits, which depend on measured sensitivity, become the largest of the scheme's
    widths within its budget.
    """
    if not scheme.reads:
        return None
    overrides = {kind: _format_without(part) for kind, part in scheme.own.items()}
    others: dict[str, Any] = {name: getattr(scheme, name) for name in ("ignore", "include", "experts", "loads_in")}
    if scheme.kv_cache is not None:
        others["kv_cache"] = CacheParams(strategy=scheme.kv_cache.strategy, range="unit")
    return SchemeParams.model_validate({"method": "rtn", **_format_without(scheme), **others, "overrides": overrides})


def _format_without(scheme: SchemeParams) -> dict[str, Any]:
    """The format of a scheme, with a range and activations that need no calibration data."""
    bits = scheme.weight_bits
    if scheme.mixed is not None:
        bits = max(width for width in scheme.mixed.widths if width <= scheme.mixed.average_bits)
    activations = scheme.activations
    if activations is not None and activations.static:
        rule = {"range": "constant"} if activations.type == "nvfp4" else {"dynamic": True}
        activations = ActivationParams.model_validate({"type": activations.type, **rule})
    return {
        **{name: getattr(scheme, name) for name in FORMAT},
        "weight_bits": bits,
        "range": "mse" if scheme.range in ("hessian", "imatrix") else scheme.range,
        "activations": activations,
    }


def nonsense(samples: Sequence[Sequence[int]], special_prefix: int, vocabulary: int, seed: int) -> pa.Table:
    """Samples of the same lengths with token ids drawn uniformly from the vocabulary.

    The special tokens before a text (beginning-of-sequence) stay: the model never reads a text without them, so the
    set would be worse than nonsense.

    Args:
        samples: token ids of the random set.
        special_prefix: number of leading tokens to keep.
        vocabulary: number of token ids of the model.

    Returns:
        Columns sample_id, input_ids.
    """
    rng = generator(seed, NONSENSE)
    samples_by_id: dict[str, NDArray[np.int32]] = {}
    for ids in samples:
        name = ""
        while not name or name in samples_by_id:  # two short samples may be equal
            drawn = rng.integers(0, vocabulary, len(ids)).astype(np.int32)
            drawn[:special_prefix] = ids[:special_prefix]
            if len(ids) <= special_prefix:
                drawn = rng.integers(0, vocabulary, len(ids)).astype(np.int32)
            name = sample_id(drawn)
        samples_by_id[name] = drawn
    return _table(samples_by_id)


class Oracle:
    """Chooses random samples from the evaluated split, in the evaluation's mix of domains, from other documents.

    A document of which any window is evaluated is excluded. So the oracle shares the split and the mix of domains with
    the evaluation, but no text.
    """

    def __init__(self, samples: Path, held_out: HeldOut) -> None:
        table = read_samples(samples, ["report"], ["sample_id", "doc_id", "domain", "n_tokens", "input_ids"])
        evaluated = set(held_out.doc_ids)
        apart = [row for row, doc in enumerate(table["doc_id"].to_pylist()) if doc not in evaluated]
        rest = table.take(pa.array(apart, pa.int64()))
        self.table = rest.take(pc.sort_indices(rest["sample_id"]))
        domains = self.table["domain"].to_pylist()
        tokens: dict[str, int] = {}
        for domain, ids in zip(held_out.domains, held_out.tokens, strict=True):
            tokens[domain] = tokens.get(domain, 0) + len(ids)
        self.domains = sorted(tokens)
        self.rows = {name: np.flatnonzero(np.array(domains) == name) for name in self.domains}
        lengths = self.table["n_tokens"].to_numpy()
        # samples per domain are proportional to evaluated tokens / mean length; `apportion` needs integers
        self.weights = np.array(
            [
                round(1e6 * tokens[name] / float(lengths[rows].mean())) if len(rows := self.rows[name]) else 0
                for name in self.domains
            ],
            dtype=np.int64,
        )

    def lacks(self, n: int) -> str | None:
        """The reason why there is no oracle of n samples; None: there is one."""
        if not self.weights.any():
            return "every document of the report split is evaluated, so none is left for it"
        for name, quota in zip(self.domains, apportion(self.weights, n, "proportional"), strict=True):
            if quota > len(self.rows[name]):
                return (
                    f"it needs {quota} samples of {name!r} from documents of the report split that are not evaluated, "
                    f"and there are {len(self.rows[name])}"
                )
        return None

    def draw(self, n: int, seed: int) -> pa.Table:
        """n samples, with columns sample_id and input_ids; requires that `lacks(n)` is None."""
        rng = generator(seed, ORACLE)
        quotas = apportion(self.weights, n, "proportional")
        rows = [
            rng.choice(self.rows[name], quota, replace=False) for name, quota in zip(self.domains, quotas, strict=True)
        ]
        return self.table.take(pa.array(np.sort(np.concatenate(rows)))).select(["sample_id", "input_ids"])


def _table(samples_by_id: dict[str, NDArray[np.int32]]) -> pa.Table:
    return pa.table(
        {"sample_id": list(samples_by_id), "input_ids": pa.array(list(samples_by_id.values()), pa.list_(pa.int32()))}
    )
