"""A mixture of domains: a quota of samples for each, chosen within the domain by another strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from plumbline.calibration_set.methods.token_counts import reference_of
from plumbline.calibration_set.strategies.base import Piece, Pool, Samples, Selection, generator, require_domains
from plumbline.calibration_set.strategies.registry import Strategy, get

Weights = dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


def _needs_no_options(name: str) -> str:
    if name in ("mixture", "self_generated"):
        raise ValueError(f"{name} does not choose within a domain; name another strategy")
    if missing := [option for option, field in get(name).options.model_fields.items() if field.is_required()]:
        raise ValueError(f"strategy {name} cannot do without its options {', '.join(missing)}; name one that can")
    return name


Inner = Annotated[str, AfterValidator(_needs_no_options)]


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    quotas: Annotated[Weights, Field(min_length=1)] | None = None,
    within: Inner = "random",
) -> Selection:
    """Choose a given share of samples from each domain, and within a domain by another strategy.

    Options:
        quotas: {domain: weight}; n is split in these proportions, by largest remainder; a domain that is not named
            gets no sample. None: the expected share of tokens per domain is the reference's (production's, else the
            tuning split's), over the domains of the pool.
        within: the strategy that chooses within each domain, with its default options. It reads the domain's samples of
            the pool and of the reference (all of the reference if that has none of the domain), and has its own seed
            per domain.

    Where a domain has too few samples, the other named ones fill its quota in proportion to their weights; the notes
    list the quota and the samples chosen. The set has fewer than n samples only if all of them have too few.

    Optimises: the variance of what depends on the domain, against a random draw, or the domain mix if quotas are given
    by hand; within a domain, what the inner strategy optimises.
    Cost: O(N), and the cost of the inner strategy on each domain.
    Source: stratified sampling with allocation by largest remainder (Hamilton); mixtures of domains for calibration:
    arXiv 2502.18424, 2601.18306.
    """
    domain_of = np.array(pool.domains)
    rows_of = {str(domain): np.flatnonzero(domain_of == domain) for domain in np.unique(domain_of)}
    weights, facts = _of_reference(pool, rows_of) if quotas is None else (_given(quotas, rows_of), {})
    inner = get(within)
    seed = int(rng.integers(2**63))
    have = {domain: len(rows_of[domain]) for domain in weights}
    chosen: dict[str, Selection] = {}
    while True:
        take = split(weights, n, have)
        for domain, count in take.items():
            if count and (domain not in chosen or len(chosen[domain].indices) != count):
                part = _of_domain(pool, rows_of[domain], domain)
                chosen[domain] = _choose(inner, part, count, generator(seed, f"{within} of {domain}"))
                if (reached := len(chosen[domain].indices)) < count:
                    have[domain] = reached
        if all(have[domain] >= count for domain, count in take.items()):
            break  # else an inner strategy chose too few, and the other domains fill its quota
    apportioned = apportion(weights, n)
    facts["within"] = within
    facts["domains"] = {
        domain: {
            "weight": round(float(weights[domain] / sum(weights.values())), 6),
            "pool": len(rows_of[domain]),
            "quota": apportioned[domain],
            "chosen": take[domain],
            "notes": chosen[domain].notes if take[domain] else {},
        }
        for domain in weights
    }
    return _joined({domain: chosen[domain] for domain in weights if take[domain]}, rows_of, facts)


def apportion(weights: Mapping[str, Fraction], n: int) -> dict[str, int]:
    """Split n in proportion to the weights by largest remainder; ties go to the larger weight, then to the first name.

    Source: Hamilton's method of apportionment.
    """
    exact = {name: n * weight / sum(weights.values()) for name, weight in weights.items()}
    parts = {name: int(share) for name, share in exact.items()}
    order = sorted(exact, key=lambda name: (parts[name] - exact[name], -weights[name], name))
    for name in order[: n - sum(parts.values())]:
        parts[name] += 1
    return parts


def split(weights: Mapping[str, Fraction], n: int, have: Mapping[str, int]) -> dict[str, int]:
    """Split n as `apportion` does; what exceeds a domain's samples is split again over the domains with more."""
    take = {name: min(quota, have[name]) for name, quota in apportion(weights, n).items()}
    while left := n - sum(take.values()):
        with_more = {name: weight for name, weight in weights.items() if take[name] < have[name]}
        if not with_more:
            break
        for name, count in apportion(with_more, left).items():
            take[name] += min(count, have[name] - take[name])
    return take


def _given(quotas: Mapping[str, float], rows_of: Mapping[str, NDArray[np.int64]]) -> dict[str, Fraction]:
    require_domains(quotas, list(rows_of), "params.yaml, quotas of strategy mixture")
    return {domain: Fraction(str(quotas[domain])) for domain in sorted(quotas)}  # 0.1 is a tenth


def _of_reference(pool: Pool, rows_of: Mapping[str, NDArray[np.int64]]) -> tuple[dict[str, Fraction], dict[str, Any]]:
    """Weights whose expected share of tokens is the reference's: its tokens over the pool's mean length."""
    reference, name = reference_of(pool, "mixture")
    domains = np.array(reference.domains)
    tokens = {str(domain): int(reference.lengths[domains == domain].sum()) for domain in np.unique(domains)}
    shared = [domain for domain in tokens if domain in rows_of]
    if not shared:
        raise ValueError(
            f"strategy mixture: {name} has the domains {', '.join(tokens)} and the pool {', '.join(rows_of)}, none in "
            f"common; set `domain` of the source in params.yaml, name its folders after the pool's domains, or give "
            f"the choice quotas"
        )
    lengths = pool.lengths
    weights = {
        domain: Fraction(tokens[domain] * len(rows_of[domain]), int(lengths[rows_of[domain]].sum()))
        for domain in shared
    }
    lost = {domain: round(count / sum(tokens.values()), 6) for domain, count in tokens.items() if domain not in rows_of}
    return weights, {"reference": name, "tokens_in_domains_the_pool_lacks": lost}


def _of_domain(pool: Pool, rows: NDArray[np.int64], domain: str) -> Pool:
    """The pool, the tuning split and the production sample, restricted to a domain."""

    def part(samples: Samples) -> Samples:
        there = np.flatnonzero(np.array(samples.domains) == domain)
        return Samples(samples.table.take(pa.array(there)), samples.readers) if len(there) else samples

    production = None if pool.production is None else part(pool.production)
    return replace(pool.subset(rows), tuning=part(pool.tuning), production=production)


def _choose(inner: Strategy, pool: Pool, n: int, rng: np.random.Generator) -> Selection:
    options = inner.options()
    selection = inner.select(pool, n, rng, **{field: getattr(options, field) for field in type(options).model_fields})
    if selection.written:
        raise ValueError(
            f"strategy mixture: {inner.name} writes samples, which have no domain; name another strategy in `within`"
        )
    return selection


def _joined(
    chosen: Mapping[str, Selection], rows_of: Mapping[str, NDArray[np.int64]], notes: dict[str, Any]
) -> Selection:
    """One selection, domain after domain, in rows of the whole pool."""
    indices: list[int] = []
    reasons: list[dict[str, Any]] = []
    pieces: dict[int, tuple[Piece, ...]] = {}
    for domain, selection in chosen.items():
        rows = rows_of[domain]
        for position, parts in selection.pieces.items():
            pieces[len(indices) + position] = tuple(replace(piece, row=int(rows[piece.row])) for piece in parts)
        indices += rows[selection.indices].tolist()
        reasons += [{"domain": domain, "within": reason} for reason in selection.reasons]
    return Selection(np.array(indices, dtype=np.int64), reasons, pieces, notes=notes)
