"""The results of a study in sentences, for the page, the terminal, Dagster and MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.calibration_report.wording import count, join, percent, signed
from plumbline.study.params import NONSENSE, ORACLE, RTN

CALLED = ("better", "worse")
UNSEEN = "no difference detected"
CAVEATS = [
    "This is about one base model and one pool: the draws choose from overlapping parts of that pool, so they say how "
    "much another draw from it would change, and nothing about other texts.",
    "KL says how much a model changed, not whether its answers became worse at some task.",
]


def headline(comparisons: Sequence[Mapping[str, Any]], baseline: str, draws: int) -> str:
    """The rules that differ from the baseline and how often, then those that do not."""
    differing, unseen = {}, []
    for rule in dict.fromkeys(c["rule"] for c in comparisons):
        verdicts = [c["verdict"] for c in comparisons if c["rule"] == rule]
        if any(verdict in CALLED for verdict in verdicts):
            differing[rule] = [(verdict, verdicts.count(verdict)) for verdict in CALLED if verdict in verdicts]
        else:
            unseen.append(rule)
    text = []
    if len(differing) == 1:
        ((rule, counts),) = differing.items()
        total = sum(c["rule"] == rule for c in comparisons)
        often = join([f"{verdict} in {count}" for verdict, count in counts])
        text.append(f"{rule} is {often} of {total} comparisons with {baseline}.")
    elif differing:
        called = sum(count for counts in differing.values() for _, count in counts)
        parts = [
            f"{rule} ({', '.join(f'{count} {verdict}' for verdict, count in counts)})"
            for rule, counts in sorted(differing.items(), key=lambda item: -sum(count for _, count in item[1]))
        ]
        text.append(f"{called} of {len(comparisons)} comparisons with {baseline} differ: {join(parts)}.")
    if unseen:
        text.append(f"No difference from {baseline} was detected for {join(unseen)}, over {draws} paired draws.")
    return " ".join(text)


def sentences(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on the differences, largest first; then one per rule on comparisons without a difference."""
    called = sorted((c for c in comparisons if c["verdict"] in CALLED), key=lambda c: -abs(c["difference"]))
    texts = [c["sentence"] for c in called]
    for rule in dict.fromkeys(c["rule"] for c in comparisons):
        compared = [c for c in comparisons if c["rule"] == rule]
        rest = [c for c in compared if c["verdict"] == UNSEEN]
        if len(rest) == 1:
            texts.append(rest[0]["sentence"])
        elif rest:
            texts.append(_unseen(rule, rest, len(compared)))
        if same := [c for c in compared if c["verdict"] == "identical"]:
            where = join([f"{c['scheme']}, n = {c['n']}" for c in same[:3]]) + (" ..." if len(same) > 3 else "")
            texts.append(f"{rule} and {same[0]['baseline']} give identical models in {len(same)} cases ({where}).")
    return [*texts, *_spreads(comparisons)]


def sentence(c: Mapping[str, Any], confidence: float) -> str:
    """The sentence of a comparison."""
    where = f"{c['scheme']}, n = {c['n']}"
    if c["verdict"] == "identical":
        return f"{where}: {c['rule']} and {c['baseline']} give identical models."
    if c["verdict"] in CALLED:
        more = "lower" if c["verdict"] == "better" else "higher"
        text = (
            f"{where}: {c['rule']} is {c['verdict']} than {c['baseline']}: over the draws, divergence from the base "
            f"model is {percent(abs(c['difference']))} {more}"
        )
        if c["low"] is not None:
            ends = sorted((c["low"], c["high"]), key=abs)
            text += f" ({100 * confidence:g} % interval {percent(abs(ends[0]))} to {percent(abs(ends[1]))})"
        return text + "."
    text = f"{where}: no difference detected between {c['rule']} and {c['baseline']} ({signed(c['difference'])})"
    if c["detectable"] is None:
        return text + "; the draws are too alike to say how small a difference would have been seen."
    return f"{text}; could have seen {percent(c['detectable'])} or more; {_settled(c['draws_needed'])}."


def _settled(draws: int | None) -> str:
    if draws is None:
        return "no number of draws settles a difference as small as the one observed without more documents"
    return f"{count(draws)} draws would settle the one observed"


def _unseen(rule: str, rest: Sequence[Mapping[str, Any]], total: int) -> str:
    text = f"{rule}: no difference from {rest[0]['baseline']} detected in {len(rest)} of {total} comparisons"
    seen = sorted(c["detectable"] for c in rest if c["detectable"] is not None)
    if seen:
        ends = [percent(seen[0]), percent(seen[-1])]
        text += f"; could have seen {join(list(dict.fromkeys(ends))).replace(' and ', ' to ')} or more"
    draws = [c["draws_needed"] for c in rest]
    finite = sorted(count for count in draws if count is not None)
    if finite:
        text += f"; the first of them would be settled by {count(finite[0])} draws"
    elif draws:
        text += "; no number of draws settles them without more documents"
    return text + "."


def _spreads(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on rules whose spread over draws differs from the baseline's, each tested separately."""
    texts = []
    for rule in dict.fromkeys(c["rule"] for c in comparisons):
        measured = [c for c in comparisons if c["rule"] == rule and c["spread_ratio"] is not None]
        for word, selected in (
            ("less", [c for c in measured if c["spread_ratio"]["high"] < 1]),
            ("more", [c for c in measured if c["spread_ratio"]["low"] > 1]),
        ):
            if selected:
                where = join([f"{c['scheme']} at n = {c['n']}" for c in selected])
                texts.append(
                    f"{rule} varies {word} from draw to draw than {measured[0]['baseline']} under {where} "
                    f"(each looked at by itself, {len(measured)} looked at)."
                )
    return texts


def on_controls(controls: Sequence[Mapping[str, Any]], schemes: Sequence[str]) -> list[str]:
    """Per scheme, a sentence on whether the controls differ from the baseline, and by how much."""
    texts = []
    for scheme in schemes:
        by_control = {
            name: [c for c in controls if c["scheme"] == scheme and c["rule"] == name]
            for name in (RTN, NONSENSE, ORACLE)
        }
        if not by_control[RTN] and all(c["verdict"] == "identical" for c in by_control[NONSENSE]):
            texts.append(f"{scheme} reads no calibration data: every set, and nonsense, gives the same model.")
            continue
        parts = []
        if by_control[RTN]:
            parts.append(_range("without calibration divergence is", by_control[RTN]))
        if by_control[NONSENSE]:
            parts.append(_range("calibrated on nonsense it is", by_control[NONSENSE]))
        if by_control[ORACLE]:
            parts.append(_range("on texts of the evaluation's own split it is", by_control[ORACLE]))
        text = f"{scheme}, against {controls[0]['baseline']}: {'; '.join(parts)}."
        if any(c["verdict"] == "better" for c in by_control[NONSENSE]):
            text += " Nonsense is called better than text: under this scheme it does not count how well texts represent"
            text += " production."
        elif by_control[NONSENSE] and not any(c["verdict"] == "worse" for c in by_control[NONSENSE]):
            text += " Nonsense is never called worse: under this scheme no choice of texts can be expected to matter"
            seen = [c["detectable"] for c in by_control[NONSENSE] if c["detectable"] is not None]
            text += f" by {percent(min(seen))} or more, which could have been seen." if seen else "."
        texts.append(text)
    return texts


def _range(what: str, comparisons: Sequence[Mapping[str, Any]]) -> str:
    """`what` +3 % (n = 8, worse) to ...: the smallest and the largest size."""
    ends = [comparisons[0]] if len(comparisons) == 1 else [comparisons[0], comparisons[-1]]
    word = {"better": "better", "worse": "worse", "identical": "identical", UNSEEN: "not told apart"}
    parts = [f"{signed(c['difference'])} (n = {c['n']}, {word[c['verdict']]})" for c in ends]
    return f"{what} {' to '.join(parts)}"
