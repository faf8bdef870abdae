"""False-alarm rate and power of a study's verdict: `python -m benchmarks.false_alarms`.

Random calibration sets are drawn, quantized and evaluated once (some seconds each; cached in .plumbline). Each
repetition compares two disjoint groups of them as a study compares two rules. The groups have the same distribution, so
every difference called is a false alarm; at most 5 % are allowed. With a planted effect (one group's KL times 1 + d,
with unchanged noise), the share called is the power, which is printed beside the computed one.

All repetitions draw from one collection of sets. This does no harm: in a simulation with normal values, the share
called varies between collections as if no set were used twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from plumbline.artifact import sha256_json, write_table
from plumbline.calibration_report.bootstrap import Resampled, strata_of
from plumbline.study.resampling import crossed_bootstrap

PROJECT = Path(__file__).resolve().parents[1]
FEWEST_DOCUMENTS = 8
"""Fewest documents of a stratum."""
SETS_AT_ONCE = 10
"""Sets whose statistics are in memory together."""


@dataclass(frozen=True)
class Collection:
    """B random sets on the same D documents."""

    kl: np.ndarray
    """float64 (B, D): KL in nats, summed over the document's tokens."""
    domains: list[str]


def groups(collection: Collection, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint groups of sets, each float64 (draws, D).

    Raises:
        ValueError: there are fewer than two groups' worth of sets.
    """
    if len(collection.kl) < 2 * draws:
        raise ValueError(f"{len(collection.kl)} sets, but two groups of {draws} need {2 * draws}; raise --sets")
    chosen = rng.permutation(len(collection.kl))
    return collection.kl[chosen[:draws]], collection.kl[chosen[draws : 2 * draws]]


def trials(collection: Collection, draws: int, repetitions: int, resamples: int, seed: int) -> list[Resampled]:
    """Comparisons of two random groups without a true difference."""
    strata = strata_of(collection.domains, FEWEST_DOCUMENTS)
    rng = np.random.default_rng(seed)
    pairs = (groups(collection, draws, rng) for _ in range(repetitions))
    return [crossed_bootstrap([pair], strata, resamples, number)[0] for number, pair in enumerate(pairs)]


def planted(trial: Resampled, effect: float) -> Resampled:
    """The comparison with the rival's KL multiplied by 1 + effect.

    The ratio of the groups and its standard errors, those of the resamples included, grow by that factor; no t changes.
    """
    factor = 1 + effect
    estimate, error = factor * (1 + trial.estimate) - 1, factor * trial.standard_error
    return replace(trial, estimate=estimate, standard_error=error)


def called(comparisons: Sequence[Resampled], effect: float, level: float) -> int:
    """Number of comparisons that call a planted effect."""
    return sum(planted(trial, effect).p_value() <= level for trial in comparisons)


def critical(comparisons: Sequence[Resampled], level: float) -> float:
    """Median over the comparisons of the standard errors from which a difference is called."""
    return float(np.median([trial.half_width(1 - level) / trial.standard_error for trial in comparisons]))


def power(collection: Collection, draws: int, effect: float, critical: float) -> float:
    """The power for a true relative difference, by the noncentral t distribution, if sums over documents are normal.

    Sets vary around their mean with coefficient of variation c, documents being the same for all, so the ratio of two
    independent groups varies with standard deviation (1 + effect) c sqrt(2 / draws), which is estimated with
    `draws` - 1 degrees of freedom.
    """
    from scipy.stats import nct

    totals = collection.kl.sum(axis=1)
    error = (1 + effect) * totals.std(ddof=1) / totals.mean() * np.sqrt(2 / draws)
    other_side = np.nan_to_num(nct.cdf(-critical, draws - 1, effect / error))  # NaN where it is negligible
    return float(np.nan_to_num(nct.sf(critical, draws - 1, effect / error)) + other_side)


def effect_found_with(collection: Collection, draws: int, critical: float, target_power: float) -> float:
    """The relative increase that is called with probability `target_power`.

    Raises:
        ValueError: it is above 100 %.
    """
    from scipy.optimize import brentq

    return float(brentq(lambda effect: power(collection, draws, effect, critical) - target_power, 0.0, 1.0))


def interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share (Clopper & Pearson 1934, Biometrika 26:404)."""
    from scipy.stats import binomtest

    bounds = binomtest(count, total).proportion_ci(confidence, method="exact")
    return float(bounds.low), float(bounds.high)


def measured(
    samples: Path, scheme_name: str, sets: int, n: int, tokens_per_domain: int, cache: Path, first: int = 0
) -> Collection:
    """Random sets of n samples of the pool, quantized and evaluated, or read from the cache.

    Args:
        samples: a tokenized_samples artifact of the model in params.yaml.
        cache: folder for results.
        first: number of the first set; the number seeds the draw.
    """
    from plumbline.activation_stats.multi_set import collect_together
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.calibration_set.pool import Sources
    from plumbline.evaluation.base_logits import BaseLogits
    from plumbline.evaluation.held_out import batches, choose
    from plumbline.evaluation.measure import measure
    from plumbline.evaluation.metrics import document_table
    from plumbline.evaluation.params import EvaluationParams
    from plumbline.params import load_params
    from plumbline.quantized_model.apply import apply_scheme
    from plumbline.quantized_model.simulate import simulate

    params, limits = load_params(PROJECT), EvaluationParams()
    scheme, settings = params.schemes[scheme_name], params.statistics
    sources = Sources(samples, None, BaseCheckpoint.of(params.model, PROJECT))
    held_out = choose(samples, tokens_per_domain, limits.samples_per_document)
    conditions = [sources.base.digest(), held_out.digest, scheme.model_dump(mode="json"), n, sources.fingerprint]
    path = cache / sha256_json(conditions)[:16]
    numbers = range(first, first + sets)
    missing = [number for number in numbers if not (path / f"{number}.parquet").is_file()]
    if missing:
        model = sources.base.loaded()
        pool = sources.pool()
        work = list(batches(held_out, limits.batch_tokens))
        base = BaseLogits(lambda: model, work, limits.base_logits_bytes)
        documents = sorted(set(zip(held_out.doc_ids, held_out.domains, strict=True)))
        row = {document: index for index, document in enumerate(documents)}
        document_of_sample = np.array([row[key] for key in zip(held_out.doc_ids, held_out.domains, strict=True)])
        with tqdm(total=len(missing), desc="random sets", disable=None) as bar:
            for start in range(0, len(missing), SETS_AT_ONCE):
                part = missing[start : start + SETS_AT_ONCE]
                rows = [np.random.default_rng([n, number]).choice(len(pool), n, replace=False) for number in part]
                names = [pool.names(set_rows) for set_rows in rows]
                tokens = {
                    name: ids.tolist()
                    for set_rows, set_names in zip(rows, names, strict=True)
                    for name, ids in zip(set_names, pool.input_ids(set_rows), strict=True)
                }
                together = collect_together(model, tokens, names, settings.ignore)
                for number, totals, set_names in zip(part, together, names, strict=True):
                    drawn = [(name, tokens[name]) for name in sorted(set_names)], None
                    quantized = apply_scheme(model, totals, scheme, lambda drawn=drawn: drawn)  # type: ignore[misc]
                    divergence, sample_of_token = measure(base, simulate(model, quantized, scheme), work)
                    write_table(
                        path / f"{number}.parquet",
                        document_table(divergence, document_of_sample[sample_of_token], documents),
                    )
                    bar.update()
    tables = [pq.read_table(path / f"{number}.parquet") for number in numbers]
    return collection_of(tables)


def collection_of(tables: Sequence[pa.Table]) -> Collection:
    """The collection of one `document_table` per set, without documents that have no predicted token."""
    keep = tables[0]["n_tokens"].to_numpy() > 0
    domains = np.array(tables[0]["domain"].to_pylist())[keep]
    return Collection(np.stack([table["kl_sum"].to_numpy()[keep] for table in tables]), [str(d) for d in domains])


@click.command()
@click.option("--samples", type=click.Path(path_type=Path), default=PROJECT / "data" / "tokenized_samples")
@click.option("--scheme", default="w4a16-gptq", show_default=True)
@click.option("--sets", default=40, show_default=True, help="Random sets to measure.")
@click.option("--first", default=0, show_default=True, help="Number of the first set; each number is another set.")
@click.option("-n", "n", default=16, show_default=True, help="Samples per set.")
@click.option("--draws", default=10, show_default=True, help="Sets per group.")
@click.option("--repetitions", default=800, show_default=True)
@click.option("--resamples", default=2000, show_default=True)
@click.option("--tokens-per-domain", default=8192, show_default=True, help="Held-out tokens per domain.")
def main(
    samples: Path,
    scheme: str,
    sets: int,
    first: int,
    n: int,
    draws: int,
    repetitions: int,
    resamples: int,
    tokens_per_domain: int,
) -> None:
    """Print a row per planted effect; the first has none."""
    level = 0.05
    cache = PROJECT / ".plumbline" / "false_alarms"
    collection = measured(samples, scheme, sets, n, tokens_per_domain, cache, first)
    totals = collection.kl.sum(axis=1)
    comparisons = trials(collection, draws, repetitions, resamples, seed=0)
    limit = critical(comparisons, level)
    print(
        f"{sets} random sets of {n} under {scheme}, {collection.kl.shape[1]} documents; KL varies by "
        f"{totals.std(ddof=1) / totals.mean():.2%} from set to set; groups of {draws}, {repetitions} repetitions; "
        f"called from {limit:.2f} standard errors on\n"
    )
    print("| planted | called different | share | 95 % interval | computed |\n|---:|---:|---:|---:|---:|")
    effects = [effect_found_with(collection, draws, limit, target_power) for target_power in (0.5, 0.8, 0.95)]
    for effect in (0.0, *effects):
        count = called(comparisons, effect, level)
        low, high = interval(count, repetitions)
        computed = f"{power(collection, draws, effect, limit):.1%}" if effect else f"at most {level:.0%}"
        share = f"{count / repetitions:.1%} | {low:.1%} to {high:.1%}"
        print(f"| {effect:+.2%} | {count} of {repetitions} | {share} | {computed} |")


if __name__ == "__main__":
    main()
