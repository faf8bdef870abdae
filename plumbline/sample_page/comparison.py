"""Two calibration sets side by side: what they share, and how they differ in domains and lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median

from plumbline.sample_page.shown import ShownSet


@dataclass(frozen=True)
class Line:
    """A figure of both sets, in words."""

    label: str
    one: str
    other: str


@dataclass(frozen=True)
class Comparison:
    """What two sets share."""

    shared: frozenset[str]
    """Ids of samples in both."""
    shared_documents: int
    lines: tuple[Line, ...]
    sentence: str


def compare(one: ShownSet, other: ShownSet) -> Comparison:
    """Compare two sets by sample id, document, domain and length."""
    shared = frozenset(s.sample_id for s in one.samples) & {s.sample_id for s in other.samples}
    documents = [{d.doc_id for s in each.samples for d in s.documents} for each in (one, other)]
    both = len(documents[0] & documents[1])
    pair = (one, other)
    lines = [
        Line("strategy", *(str(each.manifest["choice"]["strategy"]) for each in pair)),
        Line("samples", *(str(len(each.samples)) for each in pair)),
        Line("only in this set", *(str(len(each.samples) - len(shared)) for each in pair)),
        Line("tokens", *(f"{sum(s.tokens for s in each.samples)}" for each in pair)),
        Line("documents", *(str(len(names)) for names in documents)),
        Line("median length", *(f"{median(s.tokens for s in each.samples):g} tokens" for each in pair)),
    ]
    tokens = [_tokens_by_domain(each) for each in pair]
    for domain in sorted(tokens[0] | tokens[1]):
        lines.append(Line(domain, *(f"{100 * part[domain] / part.total():.0f} % of tokens" for part in tokens)))
    sentence = (
        f"{one.name} and {other.name} share {len(shared)} of {len(one.samples)} and {len(other.samples)} samples, and "
        f"{both} of {len(documents[0])} and {len(documents[1])} documents."
    )
    return Comparison(shared, both, tuple(lines), sentence)


def _tokens_by_domain(shown: ShownSet) -> Counter[str]:
    counts: Counter[str] = Counter()
    for sample in shown.samples:
        counts[sample.domain] += sample.tokens
    return counts
