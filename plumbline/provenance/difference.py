"""Compares the chains of two models: samples, parameters, versions, figures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from plumbline.artifact import read_json
from plumbline.provenance.cache_recovery import CORPUS, chain_hashes
from plumbline.provenance.link import Case, dig
from plumbline.provenance.model_files import samples_of
from plumbline.text_layout import printable, wrapped
from plumbline.tracking.registry import open_registry
from plumbline.tracking.store import TrackingError

FIGURES = ("kl_mean", "kl_p99", "perplexity_base", "perplexity_quantized", "top1_agreement", "weights_bytes")
VERSIONS = {
    "base model": ("base_model", "digest"),
    "base model's name": ("base_model", "name"),
    "base model's revision": ("base_model", "revision"),
    "tokenization fingerprint": ("fingerprint",),
    "calibration set": ("calibration_set", "digest"),
    "statistics": ("statistics", "digest"),
    "code version": ("code_version",),
    "format": ("format",),
}
FIRST = 8


@dataclass(frozen=True)
class Pair:
    """A value in model A and in model B."""

    a: Any
    b: Any


@dataclass
class Difference:
    """The differences between the chains of two models."""

    a: str
    b: str
    samples_in_both: int
    only_a: list[dict[str, Any]]
    """Samples of A that B was not calibrated on: id, documents, source, domain."""
    only_b: list[dict[str, Any]]
    reordered: bool
    """Whether the same samples are in another order."""
    domains: dict[str, Pair] = field(default_factory=dict)
    """Samples per domain, where the counts differ."""
    parameters: dict[str, Pair] = field(default_factory=dict)
    versions: dict[str, Pair] = field(default_factory=dict)
    figures: dict[str, Pair] = field(default_factory=dict)
    """Figures known for both models. They are not tested for significance; the report does that."""
    weights: bool = False
    """Whether the weights differ."""

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not (self.only_a or self.only_b or self.reordered or self.parameters or self.versions or self.weights)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"same": self.same, **asdict(self)}


def difference(a: Case, b: Case, names: tuple[str, str]) -> Difference:
    """Compare two models by their records and by their runs in DVC and MLflow.

    Args:
        a, b: cases whose records have been read.
        names: display names of the two models.
    """
    rows_a, rows_b = samples_of(a.record), samples_of(b.record)
    ids_a, ids_b = [str(row.get("sample_id")) for row in rows_a], [str(row.get("sample_id")) for row in rows_b]
    in_a, in_b = set(ids_a), set(ids_b)
    result = Difference(
        *names,
        samples_in_both=len(in_a & in_b),
        only_a=[_row(row) for row, key in zip(rows_a, ids_a, strict=True) if key not in in_b],
        only_b=[_row(row) for row, key in zip(rows_b, ids_b, strict=True) if key not in in_a],
        reordered=in_a == in_b and ids_a != ids_b,
    )
    result.domains = _differing(_count(rows_a), _count(rows_b), 0)
    result.parameters = _differing(_parameters(a), _parameters(b))
    result.versions = _differing(_versions(a), _versions(b))
    figures_a, figures_b = _figures(a), _figures(b)
    result.figures = {k: Pair(figures_a[k], figures_b[k]) for k in FIGURES if k in figures_a and k in figures_b}
    result.weights = dig(a.record, "model") != dig(b.record, "model")
    return result


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {key: sample.get(key) for key in ("sample_id", "doc_ids", "source", "domain")}


def _count(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        domain = str(row.get("domain"))
        counts[domain] = counts.get(domain, 0) + 1
    return counts


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], absent: Any = None) -> dict[str, Pair]:
    keys = list(dict.fromkeys([*a, *b]))
    return {k: Pair(a.get(k, absent), b.get(k, absent)) for k in keys if a.get(k, absent) != b.get(k, absent)}


def _parameters(case: Case) -> dict[str, Any]:
    """Choice and scheme from the record, and the other parameters of the runs that DVC has on record."""
    parameters: dict[str, Any] = {}
    run = case.made_by
    if run is not None:
        for entry in case.history.ancestry(next(iter(run.outs.values())), next(iter(run.outs))).values():
            for name, value in entry.params.items():
                if not str(name).startswith(("calibrations.", "schemes.")):
                    parameters |= _flat(str(name), value)
    choice = _flat("choice", dig(case.record, "calibration_set", "choice"))
    return choice | _flat("scheme", dig(case.record, "scheme")) | parameters


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, inner in value.items() for key, leaf in _flat(f"{name}.{part}", inner).items()}


def _versions(case: Case) -> dict[str, Any]:
    versions = {name: dig(case.record, *keys) for name, keys in VERSIONS.items()}
    versions["corpus"] = chain_hashes(case).get(CORPUS)
    return versions


def _figures(case: Case) -> dict[str, float]:
    """Figures of the evaluation of these weights: from the workspace, else from MLflow."""
    weights = dig(case.record, "model")
    for file in sorted((case.root / "data/evaluation").glob("*/metrics.json")):
        with suppress(OSError, ValueError):
            metrics = read_json(file)
            if isinstance(weights, dict) and dig(metrics, "weights") == weights:
                return {k: v for k, v in metrics.items() if k in FIGURES and isinstance(v, int | float)}
    with suppress(TrackingError):
        registry = open_registry(case.root, read_only=True)
        run_id = next((version.run_id for version in registry.versions() if version.model == case.digest), "")
        return dict(registry.run(run_id).metrics) if run_id else {}
    return {}


# ---------------------------------------------------------------------------------------------------------------------
# Text


def render_difference(result: Difference) -> str:
    """Format the samples, then a line per parameter, version and figure that differs."""
    lines = [f"A  {result.a}", f"B  {result.b}", ""]
    if result.same:
        return "\n".join(printable(line) for line in [*lines, "SAME: samples, parameters, versions and weights."])
    lines.append(
        f"samples: {result.samples_in_both} in both, {len(result.only_a)} only in A, {len(result.only_b)} only in B"
        + (", in another order" if result.reordered else "")
    )
    for mark, rows in (("-", result.only_a), ("+", result.only_b)):
        lines += [f"  {mark} {str(row['sample_id'])[:12]}  {row['source']} ({row['domain']})" for row in rows[:FIRST]]
        if len(rows) > FIRST:
            lines.append(f"  {mark} and {len(rows) - FIRST} more (--json has them all)")
    for title, pairs in (
        ("samples by domain", result.domains),
        ("parameters", result.parameters),
        ("versions", result.versions),
    ):
        if pairs:
            lines += ["", title]
            shown = (f"  {k}: {_short(p.a)} → {_short(p.b)}" for k, p in pairs.items())
            lines += [line for text in shown for line in wrapped(text, "      ")]
    if result.figures:
        lines += ["", "figures (the report says which differences are more than noise)"]
        lines += [f"  {k}: {p.a:.6g} → {p.b:.6g}{_change(p)}" for k, p in result.figures.items()]
    lines += ["", f"DIFFERENT: the weights {'differ' if result.weights else 'are the same bytes'}."]
    return "\n".join(printable(line) for line in lines)


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return f"{text[:16]}…" if len(text) == 64 and " " not in text else text[:80]


def _change(pair: Pair) -> str:
    return f"  ({100 * (pair.b - pair.a) / pair.a:+.1f} %)" if pair.a and pair.a != pair.b else ""
