"""What a run would do, before any work: its steps, forward passes, seconds, memory and disk."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbline.activation_stats.memory import free_bytes, needed_bytes, weight_bytes
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.evaluation.layerwise_mode import needed_whole
from plumbline.graph.corpus_size import CorpusSize, corpus_size
from plumbline.graph.intake import waiting
from plumbline.graph.rates import read_rates
from plumbline.graph.speed import Speed, measure
from plumbline.params import Params, load_params
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.plan import plan_of
from plumbline.quantized_model.suits import suited
from plumbline.versioning.facts import NAMED_OUTPUTS, STAGES
from plumbline.versioning.pipeline import Stage, on_request, resolved
from plumbline.versioning.status import changed_stages

EMBEDDING_BYTES = 2 * 384
PER_SAMPLE_BYTES = 3000
"""Of a sample's rows in tokenized_samples and sample_features, beside its tokens and embedding."""
WITH_STATISTICS = 1.5
"""Collecting statistics, in plain forward passes: `python -m benchmarks.roofline` measures 1.1 to 1.5."""
AROUND = {
    "raw_corpus": 8,
    "tokenized_samples": 9,
    "sample_features": 16,
    "calibration_choice": 5,
    "calibration_set": 10,
    "activation_stats": 8,
    "sample_page": 9,
    "quantized_model": 11,
    "evaluation": 10,
    "calibration_report": 20,
    "deployed_model": 32,
    "study": 0,
}
"""What a step does around its amounts (imports, DVC, MLflow, checks, plots), in steps of Dagster that do nothing, whose
time is measured. Ratios from runs of models of 0.3 and 6 million weights."""
PROPAGATED = 4
"""Passes over the set of a scheme with `propagate: quantized`, from docs/rounding.md."""


@dataclass(frozen=True)
class Work:
    """What the steps of one asset need."""

    asset: str
    steps: int
    passes: int = 0
    """Samples that run through a model."""
    seconds: float = 0.0
    disk: int = 0


@dataclass(frozen=True)
class Forecast:
    """What a run would do."""

    work: tuple[Work, ...]
    corpus: CorpusSize
    memory: int
    """Bytes at the peak, above what the libraries take."""
    free_memory: int
    free_disk: int

    def total(self, of: Callable[[Work], float]) -> float:
        """The sum over the assets."""
        return sum(of(entry) for entry in self.work)


def stages_of_run(root: Path, only: Sequence[str] = ()) -> list[Stage]:
    """The stages that a run would make, upstream first: those out of date, and what reads them.

    A step that reproduces the same bytes spares those downstream, so that a run may need fewer.
    """
    skipped, stages = on_request(root) - set(only), resolved(root)
    due = set(changed_stages(root, *only))
    if (not only or "raw_corpus" in only) and waiting(root).as_dict():
        due.add("raw_corpus")
    outs: set[str] = set()
    wanted: list[Stage] = []
    for name, stage in stages.items():
        if name in STAGES or stage.asset in skipped or (only and stage.asset not in only):
            continue
        reads_facts = NAMED_OUTPUTS in stage.facts and bool(outs)
        if name in due or reads_facts or any(_lies_in(dep, outs) for dep in stage.deps):
            wanted.append(stage)
            outs |= set(stage.outs)
    return wanted


def _lies_in(dep: str, outs: Iterable[str]) -> bool:
    return any(dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for out in outs)


def forecast(root: Path, only: Sequence[str] = ()) -> Forecast | None:
    """What a run would do; None: nothing. Takes a few seconds, in which the speed of this machine is measured.

    Raises:
        ValueError, OSError: params.yaml is invalid, or the model cannot be read.
    """
    stages = stages_of_run(root, only)
    if not stages:
        return None
    params = load_params(root)
    base = BaseCheckpoint.of(params.model, root)
    tokenizer = base.tokenizer()
    from plumbline.base_model.context import context_length

    longest = params.tokenize.within(context_length(base.folder)).max_length or 1
    size = corpus_size(params, root, longest, lambda text: len(tokenizer(text, verbose=False)["input_ids"]))
    speed = measure(params, base, root, tokenizer, size.texts)
    amounts = Amounts(params, base, size, speed, read_rates(root))
    counts = Counter(stage.asset for stage in stages)
    work = tuple(amounts.of(asset, [s for s in stages if s.asset == asset]) for asset in counts)
    return Forecast(work, size, amounts.memory(), free_bytes("cpu"), shutil.disk_usage(root).free)


class Amounts:
    """How much there is to do for each asset."""

    def __init__(
        self, params: Params, base: BaseCheckpoint, size: CorpusSize, speed: Speed, rates: Mapping[str, float]
    ) -> None:
        self.params, self.base, self.size, self.speed, self.rates = params, base, size, speed, rates
        self.model = base.skeleton()
        self.weights = {id(x): x for x in self.model.parameters()}.values()

    def of(self, asset: str, stages: Sequence[Stage]) -> Work:
        """The work of the steps of an asset."""
        keys = [stage.name.partition("@")[2] for stage in stages]
        one: Callable[[str], tuple[int, float, int]] = {
            "raw_corpus": self._corpus,
            "tokenized_samples": self._samples,
            "sample_features": self._features,
            "calibration_set": self._set,
            "activation_stats": self._statistics,
            "quantized_model": self._model,
            "evaluation": self._evaluation,
        }.get(asset, _little)
        parts = [one(key) for key in keys]
        passes, disk = sum(part[0] for part in parts), sum(part[2] for part in parts)
        seconds = sum(part[1] for part in parts) + AROUND.get(asset, 5) * self.speed.step_seconds * len(keys)
        return Work(asset, len(keys), passes, seconds * self.rates.get(asset, 1.0), disk)

    def _forward(self, samples: float) -> float:
        """Seconds of plain forward passes of the base model."""
        return samples * self.size.sample_tokens / self.speed.tokens

    def _corpus(self, key: str) -> tuple[int, float, int]:
        return 0, self.size.bytes / self.speed.text_bytes, self.size.bytes // 3

    def _samples(self, key: str) -> tuple[int, float, int]:
        return 0, self.size.bytes / self.speed.text_bytes, 2 * self.size.tokens + PER_SAMPLE_BYTES * self.size.samples

    def _features(self, key: str) -> tuple[int, float, int]:
        signatures = self.params.features.signatures
        limits = (0, 0) if signatures is None else (signatures.pool, signatures.reference)
        passes = min(limits[0], self.size.samples) + min(limits[1], self.size.samples // 10)
        seconds = self.size.samples / self.speed.embedded + WITH_STATISTICS * self._forward(passes)
        return passes, seconds, (EMBEDDING_BYTES + PER_SAMPLE_BYTES) * self.size.samples

    def _set(self, key: str) -> tuple[int, float, int]:
        n = self.params.calibrations[key].n
        return n, WITH_STATISTICS * self._forward(n), round(5 * n * self.size.sample_tokens)

    def _statistics(self, key: str) -> tuple[int, float, int]:
        n = self.params.calibrations[key].n * (2 if self.params.statistics.cache else 1)
        return n, WITH_STATISTICS * self._forward(n), self._hessians() // 4

    def _model(self, key: str) -> tuple[int, float, int]:
        choice, name = self.params.pairs()[key]
        scheme = self.params.schemes[name]
        passes = 2 + (PROPAGATED * self.params.calibrations[choice].n if scheme.propagate == "quantized" else 0)
        return passes, self._forward(passes) + self._solving(scheme) / self.speed.flops, self._plan_bytes(scheme)

    def _solving(self, scheme: SchemeParams) -> float:
        """Operations of GPTQ: a factor of each Hessian, and the products that spread a column's error."""
        if scheme.method == "rtn":
            return 20.0 * sum(x.numel() for x in self.weights)
        matrices = suited(self.model, scheme).matrices.values()
        return float(sum(2 * m.in_features**3 + 2 * m.out_features * m.in_features**2 for m in matrices))

    def _plan_bytes(self, scheme: SchemeParams) -> int:
        from plumbline.artifact import read_json
        from plumbline.base_model.architecture import stored_dtype

        return plan_of(self.model, scheme, stored_dtype(read_json(self.base.folder / "config.json"))).bytes

    def _evaluation(self, key: str) -> tuple[int, float, int]:
        passes = math.ceil(self._evaluated() / max(self.size.sample_tokens, 1))
        return 2 * passes, 2 * self._forward(passes), 100_000

    def _evaluated(self) -> float:
        """Tokens of the report split that are evaluated."""
        tokens = self.params.tokenize.splits.report * self.size.tokens
        limit = self.params.evaluation.tokens_per_domain
        return tokens if limit is None else min(tokens, limit * max(self.size.domains, 1))

    def _hessians(self) -> int:
        return needed_bytes(self.model, self.params.statistics) - weight_bytes(self.model)

    def memory(self) -> int:
        """The larger of quantizing (base model, quantized model as it is simulated, statistics twice) and evaluation
        (both models, and the base model's logits), for each process of this machine."""
        quantizing = 2 * weight_bytes(self.model) + 2 * self._hessians()
        evaluating = needed_whole(self.model, self.params.evaluation, math.ceil(self._evaluated()))
        return self.params.execution.workers * max(quantizing, evaluating)


def _little(key: str) -> tuple[int, float, int]:
    """The work of a step that reads a few files and writes one."""
    return 0, 0.0, 0
