"""How often the panel of representativeness is wrong, and what it finds: `python -m benchmarks.representativeness`.

Fair random sets of the pool are judged as every calibration set is: each flag is a false alarm, and there should be at
most 5 % of them. Then sets with a planted defect are judged, and the share that is flagged is its power.
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
    """As the strategy `random` draws."""
    return panel.population.take(_rows(panel, n, rng))


def _without_a_domain(panel: Panel, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    by_size = np.argsort(-panel.population.domain_tokens.sum(axis=0), kind="stable")
    rows = np.flatnonzero(panel.population.domain_tokens[:, by_size[min(1, len(by_size) - 1)]] == 0)
    return rng.choice(rows, min(n, len(rows)), replace=False)


def without_a_domain(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """From all domains but the second largest of the pool."""
    return panel.population.take(_without_a_domain(panel, n, rng))


def truncated(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """Every sample is cut to half the median length of the pool, its tokens thinned out in proportion."""
    part = fair(panel, n, rng)
    limit = int(np.median(panel.population.lengths)) // 2
    kept = np.minimum(part.lengths, limit)
    counts = part.counts.copy()
    counts.data = rng.binomial(counts.data, np.repeat(kept / part.lengths, np.diff(counts.indptr)))
    counts.eliminate_zeros()
    by_domain = part.domain_tokens * kept[:, None] // part.lengths[:, None]
    return Part(kept, by_domain, part.fold, part.first, counts, part.embeddings)  # activations are not followed


def other_tokenizer(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """Token ids as of another vocabulary of the same size: shuffled, but for the special token at the beginning."""
    part = fair(panel, n, rng)
    size = part.counts.shape[1]
    first = int(np.bincount(part.first).argmax())
    others = np.delete(np.arange(size), first)
    new = np.arange(size)
    new[others] = rng.permutation(others)
    counts = csr_array((part.counts.data, new[part.counts.indices], part.counts.indptr), shape=part.counts.shape)
    return Part(part.lengths, part.domain_tokens, part.fold, new[part.first], counts, part.embeddings)


def near_duplicates(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """An eighth of the samples, each eight times."""
    rows = _rows(panel, max(1, n // 8), rng)
    return panel.population.take(np.resize(rows, n))


def half_prose(panel: Panel, n: int, rng: np.random.Generator) -> Part:
    """Half of the set lacks the second domain: a mild defect."""
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
    given = parser.parse_args()
    features = given.data / "sample_features"
    samples = given.data / "tokenized_samples"
    sources = Sources(samples, features if features.is_dir() else None)
    started = time.perf_counter()
    panel = prepared(sources).panels[0]
    print(f"against {panel.name}: {len(panel.metrics)} metrics, prepared in {time.perf_counter() - started:.1f} s")
    drawn = panel
    if any(isinstance(aspect, Activations) for aspect in panel.aspects):
        # sets are drawn from the samples with a stored signature, which need no forward pass: they too are a uniform
        # draw of the pool, but the random sets of the other metrics are drawn from all of it
        pool = sources.pool()
        known = replace(panel.population.take(pool.signed), signatures=pool.signatures(pool.signed))
        drawn = replace(panel, population=known)
    print()
    print(f"{'set':<32}{'n':>5}{'flagged':>10}{'95 % interval':>18}   flagged most often by")
    for n in given.n:
        started = time.perf_counter()
        null = panel.null(n)
        print(f"null of {panel.draws} draws in {time.perf_counter() - started:.1f} s")
        for name, draw in DRAWS.items():
            flags, by = 0, dict.fromkeys(panel.metrics, 0)
            for number in range(given.sets):
                values = panel.measure(draw(drawn, n, np.random.default_rng([7, n, number])))
                p, each = family_wise(values, {metric: null[metric] for metric in values})
                flags += p <= LEVEL
                for metric, (_, adjusted) in each.items():
                    by[metric] += adjusted <= LEVEL
            low, high = binomtest(flags, given.sets).proportion_ci()
            often = sorted((metric for metric in by if by[metric]), key=lambda metric: -by[metric])
            most = ", ".join(f"{metric} {by[metric] / given.sets:.0%}" for metric in often[:4])
            print(f"{name:<32}{n:>5}{flags / given.sets:>10.1%}{low:>10.1%} to {high:>5.1%}   {most}", flush=True)


if __name__ == "__main__":
    main()
