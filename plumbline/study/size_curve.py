"""Quality and cost by size of the set, and the size beyond which the study detects no gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plumbline.calibration_report.wording import count, join, percent
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.result_cache import Measured
from plumbline.study.testing import Family

TOKENS_PER_WIDTH = 4
"""A Hessian of d channels has d directions; with fewer than 4 d tokens, damping determines many of them."""
FAMILIES = {
    "hessian": "Hessian-based (GPTQ, AdaRound, mixed bits)",
    "channel": "per-channel scales (SmoothQuant, AWQ, range: imatrix)",
    "tensor": "per-tensor activation ranges",
    "cache": "scales of keys and values",
    "none": "reads no calibration data",
}


def family_of(scheme: SchemeParams) -> str:
    """The kind of statistics that a scheme reads: a key of `FAMILIES`."""
    if scheme.method != "rtn" or scheme.mixed is not None:
        return "hessian"
    if scheme.transform is not None:
        return "channel"
    for part, family in (("ranges", "tensor"), ("sums", "channel"), ("cache", "cache")):
        if part in scheme.reads:
            return family
    return "none"


def size_curve(
    results: Mapping[tuple[str, int], Sequence[Measured]], family: Family, schemes: Sequence[str], width: int
) -> list[dict[str, Any]]:
    """Per scheme and size of the baseline: quality, tokens, and whether the largest size is better.

    Every size is tested against the largest one, over the same draws and documents; the tests of all schemes are one
    family with Holm's correction. `enough` is the smallest size such that neither it nor any larger size is
    significantly worse than the largest.

    Args:
        results: (scheme, n) -> the baseline's draws, in order.
        family: tests pairs.
        width: input channels of the widest quantized layer.

    Returns:
        Per scheme: `sizes` (n, kl_mean, kl_sd, calibration_tokens, tokens_per_width, and of the test against the
        largest: verdict, difference, low, high, p_adjusted, detectable), `enough`, `gain_missed` (upper end of the
        interval at `enough`), `tokens_suffice` (smallest n with tokens >= 4 width on average; None: none), `sentence`.
    """
    sizes = sorted({n for _, n in results})
    kl = {key: np.stack([one.kl for one in drawn]) for key, drawn in results.items()}
    pairs = {(scheme, n): (kl[scheme, sizes[-1]], kl[scheme, n]) for scheme in schemes for n in sizes[:-1]}
    tested = family.test(pairs)
    curves = []
    for scheme in schemes:
        rows = []
        for n in sizes:
            drawn = results[scheme, n]
            means = np.array([one.kl.sum() for one in drawn]) / family.tokens
            tokens = sum(one.tokens for one in drawn) / len(drawn)
            rows.append(
                {
                    "n": n,
                    "kl_mean": float(means.mean()),
                    "kl_sd": float(means.std(ddof=1)),
                    "calibration_tokens": round(tokens),
                    "tokens_per_width": tokens / width,
                    "against_largest": tested.get((scheme, n)),
                }
            )
        curves.append({"scheme": scheme, "sizes": rows, **_enough(rows), **_suffice(rows)})
        curves[-1]["sentence"] = _sentence(curves[-1])
    return curves


def _enough(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    enough, missed = rows[-1]["n"], 0.0
    for row in reversed(rows[:-1]):
        if row["against_largest"]["verdict"] == "worse":
            break
        enough, missed = row["n"], row["against_largest"]["high"]
    return {"enough": enough, "gain_missed": missed}


def _suffice(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"tokens_suffice": next((r["n"] for r in rows if r["tokens_per_width"] >= TOKENS_PER_WIDTH), None)}


def _sentence(curve: Mapping[str, Any]) -> str:
    largest, enough = curve["sizes"][-1]["n"], curve["enough"]
    if all((row["against_largest"] or {}).get("verdict") == "identical" for row in curve["sizes"][:-1]):
        return f"{curve['scheme']} gives the same model at every size."
    smaller = next((r for r in curve["sizes"][:-1] if r["against_largest"]["verdict"] == "better"), None)
    if smaller is not None and enough < largest:
        text = f"{curve['scheme']} gets worse beyond n = {smaller['n']}: there divergence is "
        text += f"{percent(-smaller['against_largest']['difference'])} lower than at n = {largest}"
    elif enough == largest:
        text = f"{curve['scheme']} still gains up to n = {largest}, the largest size measured"
    else:
        text = f"{curve['scheme']} gains nothing beyond n = {enough} that this study could see"
        if curve["gain_missed"] is not None:
            text += f" (at n = {largest} divergence may be up to {percent(max(0.0, curve['gain_missed']))} lower)"
    if curve["tokens_suffice"] is None:
        text += f"; no size reaches {TOKENS_PER_WIDTH} tokens per channel of the widest layer"
    return text + "."


def recommendations(
    curves: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]], schemes: Mapping[str, SchemeParams]
) -> list[dict[str, Any]]:
    """Per family of schemes, the recommended size, and the rules that are better than the baseline.

    The size is the largest `enough` of the family's schemes. A rule is recommended if it is significantly better than
    the baseline under some scheme of the family at that size, and worse under none.
    """
    rows = []
    for family, label in FAMILIES.items():
        members = [curve for curve in curves if family_of(schemes[curve["scheme"]]) == family]
        if not members:
            continue
        names = [curve["scheme"] for curve in members]
        if family == "none":
            text = f"{join(names)}: calibration data changes nothing; any set will do."
            rows.append({"family": label, "schemes": names, "n": None, "rules": [], "sentence": text})
            continue
        n = max(curve["enough"] for curve in members)
        tokens = next(row["calibration_tokens"] for row in members[0]["sizes"] if row["n"] == n)
        called = [c for c in comparisons if c["scheme"] in names and c["n"] == n]
        worse = {c["rule"] for c in called if c["verdict"] == "worse"}
        better = [c["rule"] for c in called if c["verdict"] == "better" and c["rule"] not in worse]
        rules = list(dict.fromkeys(better))
        baseline = comparisons[0]["baseline"]
        choice = f"chosen by {join(rules)}" if rules else f"chosen by {baseline}, as no rule is better at that size"
        if not rules and (elsewhere := _better_elsewhere(comparisons, names, n)):
            choice += f" ({elsewhere})"
        text = f"{label} ({join(names)}): {n} samples, about {count(tokens)} tokens, {choice}."
        rows.append({"family": label, "schemes": names, "n": n, "rules": rules, "sentence": text})
    return rows


def _better_elsewhere(comparisons: Sequence[Mapping[str, Any]], schemes: Sequence[str], size: int) -> str:
    """The rules that are better at another size, and where: "token_coverage is at n = 4"; empty: none is."""
    sizes: dict[str, list[int]] = {}
    for c in comparisons:
        if c["scheme"] in schemes and c["verdict"] == "better" and c["n"] != size:
            sizes.setdefault(c["rule"], []).append(c["n"])
    return join(
        [f"{rule} is at n = {join([str(n) for n in sorted({*found})])}" for rule, found in sizes.items()] or [""]
    )
