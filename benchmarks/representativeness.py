"""False-alarm rate and power of the representativeness panel: `python -m benchmarks.representativeness`.

Random sets of the pool are tested as every calibration set is. Every flag is a false alarm; at most 5 % are allowed.
For sets with a planted defect, the share of flagged sets is the power.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import binomtest

from plumbline.calibration_set.pool import Sources
from plumbline.calibration_set.representativeness.activations import Activations
from plumbline.calibration_set.representativeness.compare import prepared
from plumbline.calibration_set.representativeness.null import LEVEL, family_wise
from plumbline.calibration_set.representativeness.panel import Panel
from plumbline.calibration_set.representativeness.part import Part

PROJECT = Path(__file__).resolve().parents[1]
Draw = Callable[[Panel, int, np.random.Generator], Part]


def _rows(panel: Panel, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(len(panel.population), n, replace=False)


def fair(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """A set as the strategy `random` draws it."""
    return panel.population.take(_rows(panel, n, rng))


def _without_a_domain(panel: Panel, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    by_size = np.argsort(-panel.population.domain_tokens.sum(axis=0), kind="stable")
    rows = np.flatnonzero(panel.population.domain_tokens[:, by_size[min(1, len(by_size) - 1)]] == 0)
    return rng.choice(rows, min(n, len(rows)), replace=False)


def without_a_domain(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """A set without the second largest domain of the pool."""
    return panel.population.take(_without_a_domain(panel, n, rng))


def truncated(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """Samples cut to half the median length of the pool, with token counts thinned in proportion."""
    part = fair(panel, n, rng)
    limit = int(np.median(panel.population.lengths)) // 2
    lengths = np.minimum(part.lengths, limit)
    counts = part.counts.copy()
    counts.data = rng.binomial(counts.data, np.repeat(lengths / part.lengths, np.diff(counts.indptr)))
    counts.eliminate_zeros()
    by_domain = part.domain_tokens * lengths[:, None] // part.lengths[:, None]
    return Part(lengths, by_domain, part.fold, part.first, counts, part.embeddings)  # without activations


def other_tokenizer(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """Token ids shuffled as by another vocabulary of the same size, except for the special token at the beginning."""
    part = fair(panel, n, rng)
    size = part.counts.shape[1]
    first = int(np.bincount(part.first).argmax())
    others = np.delete(np.arange(size), first)
    new = np.arange(size)
    new[others] = rng.permutation(others)
    counts = csr_array((part.counts.data, new[part.counts.indices], part.counts.indptr), shape=part.counts.shape)
    return Part(part.lengths, part.domain_tokens, part.fold, new[part.first], counts, part.embeddings)


def near_duplicates(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """A set of n / 8 samples, each eight times."""
    rows = _rows(panel, max(1, n // 8), rng)
    return panel.population.take(np.resize(rows, n))


def half_prose(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """A mild defect: half of the set lacks the second largest domain."""
    second = _without_a_domain(panel, n // 2, rng)
    others = np.setdiff1d(np.arange(len(panel.population)), second)
    return panel.population.take(np.concatenate([rng.choice(others, n - n // 2, replace=False), second]))


DRAWS: dict[str, Draw] = {
    "fair random draw": fair,
    "a domain is missing": without_a_domain,
    "a domain is missing from half": half_prose,
    "cut to half the median length": truncated,
    "another tokenizer": other_tokenizer,
    "each sample eight times": near_duplicates,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PROJECT / "data", help="folder with the artifacts")
    parser.add_argument("--sets", type=int, default=200, help="sets of each kind")
    parser.add_argument("--n", type=int, nargs="+", default=[16, 64, 256], help="samples of a set")
    arguments = parser.parse_args()
    features = arguments.data / "sample_features"
    samples = arguments.data / "tokenized_samples"
    sources = Sources(samples, features if features.is_dir() else None)
    started = time.perf_counter()
    panel = prepared(sources).panels[0]
    print(f"against {panel.name}: {len(panel.metrics)} metrics, prepared in {time.perf_counter() - started:.1f} s")
    drawn = panel
    if any(isinstance(aspect, Activations) for aspect in panel.aspects):
        # Draw from the samples with a stored signature, which need no forward pass. They are a uniform draw of the
        # pool; the null of the other metrics draws from the whole pool.
        pool = sources.pool()
        with_signatures = replace(panel.population.take(pool.signed), signatures=pool.signatures(pool.signed))
        drawn = replace(panel, population=with_signatures)
    print()
    print(f"{'set':<32}{'n':>5}{'flagged':>10}{'95 % interval':>18}   flagged most often by")
    for n in arguments.n:
        started = time.perf_counter()
        null = panel.null(n)
        print(f"null of {panel.draws} draws in {time.perf_counter() - started:.1f} s")
        for name, draw in DRAWS.items():
            flags, by = 0, dict.fromkeys(panel.metrics, 0)
            for number in range(arguments.sets):
                values = panel.measure(draw(drawn, n, np.random.default_rng([7, n, number])))
                p, adjusted_p = family_wise(values, {metric: null[metric] for metric in values})
                flags += p <= LEVEL
                for metric, (_, adjusted) in adjusted_p.items():
                    by[metric] += adjusted <= LEVEL
            low, high = binomtest(flags, arguments.sets).proportion_ci()
            often = sorted((metric for metric in by if by[metric]), key=lambda metric: -by[metric])
            most = ", ".join(f"{metric} {by[metric] / arguments.sets:.0%}" for metric in often[:4])
            print(f"{name:<32}{n:>5}{flags / arguments.sets:>10.1%}{low:>10.1%} to {high:>5.1%}   {most}", flush=True)


if __name__ == "__main__":
    main()
