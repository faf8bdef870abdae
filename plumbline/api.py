"""The functions of `import plumbline` for notebooks: choose calibration samples, collect, quantize, compare.

Samples are lists of token ids, like a tokenizer's `input_ids`. Models are causal language models of transformers.
The functions are those of the graph, without workspace, files or provenance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plumbline.activation_stats.collect import collect as collect_statistics
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.calibration_choice.choice import resolve
from plumbline.calibration_set.calibration_dataset import CalibrationDataset, load_calibration_set
from plumbline.calibration_set.in_memory import pool_of
from plumbline.calibration_set.pool import Sources, of_domains
from plumbline.calibration_set.select import choose as choose_from
from plumbline.calibration_set.select import joined
from plumbline.calibration_set.strategies import get
from plumbline.calibration_set.strategies.base import Pool, sample_id
from plumbline.divergence import TokenDivergence
from plumbline.evaluation.base_logits import BaseLogits
from plumbline.evaluation.held_out import HeldOut, batches
from plumbline.evaluation.measure import measure
from plumbline.params import load_params
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.export import export
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.simulate import simulate as simulate_model
from plumbline.workspace import workspace_above

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "CalibrationDataset",
    "choose",
    "collect",
    "judge",
    "load_calibration_set",
    "quantize",
    "save",
    "simulate",
]

Samples = Sequence[Sequence[int]]
"""Token ids per sample."""
BATCH_TOKENS = 4096
LOGITS_BYTES = 0
"""Limit of cached base-model logits in bytes: none, because they are used once."""


def choose(
    samples: Samples | str | Path, strategy: str = "random", n: int = 128, *, seed: int = 0, **options: Any
) -> list[list[int]]:
    """Choose n calibration samples; returns their token ids, in order.

    Args:
        samples: the samples to choose from, or a folder in a workspace to choose from its pool.
        strategy: a name from `plumbline strategies`. Some need embeddings, activations or the base model, which only a
            workspace has.
        seed: the same seed, samples and options give the same choice.
        options: options of the strategy (`plumbline strategies NAME`), and the general options `domains` and
            `allow_fewer`.

    Raises:
        ValueError: no such strategy or option, fewer than n samples, or the strategy needs a workspace.
    """
    choice = resolve("notebook", {"strategy": strategy, "n": n, "seed": seed, **options})
    pool = _workspace_pool(Path(samples)) if isinstance(samples, str | Path) else pool_of(samples)
    candidates = of_domains(pool, choice["domains"], choice["name"])
    selection = choose_from(candidates, get(strategy), choice, len(pool))
    chosen: list[list[int]] = joined(candidates, selection, choice["name"])["input_ids"].to_pylist()
    return chosen


def collect(model: PreTrainedModel, samples: Samples, **settings: Any) -> ActivationStats:
    """Collect activation statistics: a forward pass of the base model per sample.

    Args:
        model: the base model, in evaluation mode.
        samples: the calibration samples; duplicates are counted once.
        settings: settings of `statistics:` in params.yaml, such as `hessian=False`; see `StatisticsParams`.

    Raises:
        ValueError: the model is in training mode, a setting is unknown, or `activation_stats.collect` raises.
    """
    _require_evaluation_mode(model)
    params = StatisticsParams.model_validate(settings)
    return collect_statistics(model, list(_named(samples).items()), params, base_model_digest="", fingerprint="")


def quantize(
    model: PreTrainedModel,
    statistics: ActivationStats,
    scheme: Mapping[str, Any] | SchemeParams,
    samples: Samples | None = None,
) -> Quantized:
    """Quantize the base model's Linears; the model itself is not changed.

    Args:
        statistics: from `collect` on this model.
        scheme: as under `schemes:` in params.yaml, such as `{"method": "gptq", "weight_bits": 4, "group_size": 128}`.
        samples: the calibration samples, required by schemes with `propagate: quantized`.

    Raises:
        ValueError: the scheme does not fit the model or the statistics.
    """
    params = SchemeParams.model_validate(scheme)

    def calibration() -> tuple[list[tuple[str, Sequence[int]]], None]:
        if samples is None:
            raise ValueError("propagate: quantized runs the calibration samples again; pass them as `samples`")
        return list(_named(samples).items()), None

    return apply_scheme(model, statistics, params, calibration)


def simulate(model: PreTrainedModel, quantized: Quantized, scheme: Mapping[str, Any] | SchemeParams) -> PreTrainedModel:
    """Return a copy of the base model, in its dtype, whose outputs equal the quantized model's bit for bit."""
    return simulate_model(model, quantized, SchemeParams.model_validate(scheme))


def save(
    model: PreTrainedModel,
    quantized: Quantized,
    scheme: Mapping[str, Any] | SchemeParams,
    base_folder: str | Path,
    out: str | Path,
) -> None:
    """Write the quantized model as a folder in the compressed-tensors format, which transformers and vLLM load.

    Unlike a model of the graph it has no calibration.json, so its samples cannot be audited.

    Args:
        base_folder: the base model's folder, whose tokenizer files are copied.
        out: the folder to write; created if it does not exist.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    export(model, quantized, SchemeParams.model_validate(scheme), Path(base_folder), Path(out))


def judge(base: PreTrainedModel, quantized: PreTrainedModel, samples: Samples) -> TokenDivergence:
    """Compare two models on held-out samples; returns an entry per predicted token, in order of the samples.

    `.kl` is the KL divergence from the base model in nats, `.agree` whether both models predict the same token;
    `.kl.mean()` is the KL in the graph's table.

    Raises:
        ValueError: no token is predicted, the vocabularies differ, or a model returns inf or NaN.
    """
    for model in (base, quantized):
        _require_evaluation_mode(model)
    tokens = [np.asarray(sample, dtype=np.int64) for sample in samples]
    if not any(len(ids) > 1 for ids in tokens):
        raise ValueError(
            "samples: expected at least one sample of at least two tokens, because the first is not predicted"
        )
    names = [str(number) for number in range(len(tokens))]
    work = list(batches(HeldOut(names, names, names, tokens, {}), BATCH_TOKENS))
    per_token, _ = measure(BaseLogits(lambda: base, work, LOGITS_BYTES), quantized, work)
    return per_token


def _workspace_pool(folder: Path) -> Pool:
    root = workspace_above(folder)
    samples, features = root / "data" / "tokenized_samples", root / "data" / "sample_features"
    if not samples.is_dir():
        raise FileNotFoundError(f"{root} has no data/tokenized_samples; `plumbline run` there makes it")
    return Sources(
        samples, features if features.is_dir() else None, BaseCheckpoint.of(load_params(root).model, root)
    ).pool()


def _named(samples: Samples) -> dict[str, list[int]]:
    """Key the samples by their ids."""
    ids = [np.asarray(sample, dtype=np.int32) for sample in samples]
    return {sample_id(sample): sample.tolist() for sample in ids}


def _require_evaluation_mode(model: PreTrainedModel) -> None:
    if model.training:
        raise ValueError("the model is in training mode, in which dropout changes its outputs; call model.eval() first")
