"""Promotion of a quantized model: choice of the candidate, the gates that it must pass, and the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from plumbline.artifact import read_json
from plumbline.calibration_report.params import ReportParams
from plumbline.calibration_report.study import read_study
from plumbline.calibration_report.verdict import judge
from plumbline.calibration_set.reader import read_calibration_set
from plumbline.deployed_model.overlap import near_duplicates
from plumbline.deployed_model.params import DeploymentParams
from plumbline.tokenized_samples.fingerprint import policy_of, tokenizer_fingerprint
from plumbline.tokenized_samples.reader import iter_samples

FIGURES = ("kl_mean", "kl_p99", "perplexity_base", "perplexity_quantized", "top1_agreement", "weights_bytes")

Decision = Literal["promoted", "kept", "rejected"]


@dataclass(frozen=True)
class Champion:
    """The model that carries the alias when the decision is made."""

    pair: str
    model: str
    """DVC hash of its folder."""
    evaluation: Path | None
    """Its evaluation on the current report split; None if there is a `problem`."""
    problem: str = ""
    """Reason why it could not be evaluated there."""


@dataclass(frozen=True)
class Inputs:
    """Folders that the decision reads; `models` and `sets` hold a folder per pair and per choice."""

    evaluations: Path
    models: Path
    sets: Path
    samples: Path
    report: Path
    serving: Path | None = None


def choose_champion(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The calibration choice with the lowest mean KL divergence on the report split; the first of equal ones.

    Args:
        metrics: metrics.json of each choice under the deployed scheme.

    Raises:
        ValueError: there is no choice.
    """
    if not metrics:
        raise ValueError(
            "no evaluation to choose from: name a calibration choice under grid.calibrations in params.yaml"
        )
    return min(metrics, key=lambda choice: float(metrics[choice]["kl_mean"]))


@dataclass(frozen=True)
class Gate:
    """The outcome of one check."""

    name: str
    passed: bool
    sentence: str
    found: Any = None
    limit: Any = None

    def as_dict(self) -> dict[str, Any]:
        """For promotion.json."""
        return asdict(self)


def quality(
    candidate: Path, champion: Path | None, problem: str, deployment: DeploymentParams, report: ReportParams
) -> Gate:
    """Gate: mean KL is not worse than the champion's, paired over the documents of the report split as in the verdict.

    Args:
        candidate: the candidate's evaluation.
        champion: the champion's evaluation on the same documents; None: there is no champion, or, with `problem`, it
            could not be evaluated.
    """
    name, limit = "no_worse_than_the_champion", {"relative_high": deployment.max_worse}
    if champion is None:
        return Gate(name, not problem, problem or "There is no champion yet to compare with.", None, limit)
    scheme = str(read_json(candidate / "metrics.json")["scheme"]["name"])
    both = {f"champion-{scheme}": champion, f"candidate-{scheme}": candidate}
    try:
        study = read_study(["champion", "candidate"], [scheme], both)
    except ValueError as error:
        return Gate(name, False, f"Candidate and champion cannot be compared: {error}", None, limit)
    [comparison] = judge(study, report.model_copy(update={"baseline": "champion"}))["comparisons"]
    documents = len(study.tokens)
    if comparison["verdict"] == "identical":
        return Gate(name, True, "The candidate's weights are the champion's, byte for byte.", comparison, limit)
    if "relative" not in comparison or comparison["relative"]["high"] is None:
        sentence = f"{documents} documents are too few to tell; evaluate more (evaluation.tokens_per_domain, splits)."
        return Gate(name, False, sentence, comparison, limit)
    middle, low, high = (100 * comparison["relative"][part] for part in ("difference", "low", "high"))
    passed = comparison["difference"] < 0 and comparison["relative"]["high"] <= deployment.max_worse
    allowed = "lower is asked" if middle >= 0 else f"at most {100 * deployment.max_worse:+.2g} % is allowed at its end"
    sentence = (
        f"Mean KL {middle:+.2f} % against the champion's on {documents} documents "
        f"({100 * report.confidence:.0f} % interval {low:+.2f} to {high:+.2f} %)"
        + ("." if passed else f"; {allowed} (deployment.max_worse).")
    )
    return Gate(name, passed, sentence, comparison, limit)


def tokenization(model: Path, fingerprint: str, serving: Path | None, trust_remote_code: bool = False) -> Gate:
    """Gate: the served tokenizer gives the fingerprint of the calibration, under the same policy.

    Args:
        model: the candidate's folder.
        fingerprint: fingerprint of the samples that the candidate is evaluated on.
        serving: folder of the tokenizer in production; None: the candidate's folder.
    """
    from transformers import AutoTokenizer

    record = read_json(model / "calibration.json")
    where = "the model's own folder" if serving is None else "the folder deployment.serving"
    name, calibrated = "tokenized_as_it_is_served", record["fingerprint"]
    if serving is not None and not serving.is_dir():
        return Gate(name, False, f"{where} does not exist; give the folder of the tokenizer.", None, calibrated)
    tokenizer = AutoTokenizer.from_pretrained(serving or model, trust_remote_code=trust_remote_code)
    served, parts = tokenizer_fingerprint(tokenizer, policy_of(record["fingerprint_parts"]))
    if served == calibrated == fingerprint:
        return Gate(name, True, f"One fingerprint from the samples to {where}: {served[:12]}.", served, calibrated)
    wrong = [part for part, value in record["fingerprint_parts"].items() if parts.get(part) != value]
    why = f"{', '.join(wrong)} differ" if wrong else f"the samples have {fingerprint[:12]}"
    sentence = f"Calibrated under fingerprint {calibrated[:12]}; the tokenizer in {where} gives {served[:12]}: {why}."
    return Gate(name, False, sentence, served, calibrated)


def leak(calibration_set: Path, samples: Path, deployment: DeploymentParams) -> Gate:
    """Gate: the calibration set holds no document of the report split, by id, by tokens, or as a near-duplicate."""
    chosen = read_calibration_set(calibration_set, ["sample_id", "doc_ids", "input_ids"])
    ids = set(chosen["doc_ids"].combine_chunks().flatten().to_pylist())
    sample_ids = set(chosen["sample_id"].to_pylist())
    exact: set[str] = set()
    documents: set[str] = set()

    def texts() -> Any:
        for batch in iter_samples(samples, ["report"], ["doc_id", "sample_id", "input_ids"]):
            rows = zip(batch["doc_id"].to_pylist(), batch["sample_id"].to_pylist(), batch["input_ids"], strict=True)
            for doc_id, sample_id, tokens in rows:
                documents.add(doc_id)
                if doc_id in ids or sample_id in sample_ids:
                    exact.add(doc_id)
                else:
                    yield doc_id, tokens.values.to_numpy()

    tokens_of = [row.values.to_numpy() for row in chosen["input_ids"].combine_chunks()]
    overlaps = near_duplicates(tokens_of, texts(), deployment.near_duplicate)
    nearest: dict[str, Any] = {}
    for overlap in sorted(overlaps, key=lambda item: -item.share):
        nearest.setdefault(overlap.document, overlap)
    allowed = int(deployment.max_near_duplicates * len(documents))
    passed = not exact and len(nearest) <= allowed
    compared = f"{len(documents)} report documents against {chosen.num_rows} calibration samples"
    sentence = f"{compared}: {len(exact)} exact, {len(nearest)} near-duplicates"
    if passed:
        sentence += "."
    elif exact:
        sentence += f", none may be exact; first {min(exact)[:12]}."
    else:
        first = next(iter(nearest.values()))
        sentence += (
            f", {allowed} allowed (deployment.max_near_duplicates); nearest: {first.document[:12]} shares "
            f"{100 * first.share:.0f} % of its runs with sample {first.sample}."
        )
    shown = {"exact": len(exact), "near_duplicates": len(nearest), "documents": len(documents)}
    return Gate("no_report_text_is_used", passed, sentence, shown, {"near_duplicates": allowed})


def fallbacks(metrics: Mapping[str, Any], deployment: DeploymentParams) -> Gate:
    """Gate: no more layers than the limit fell back to another method."""
    layers = dict(metrics["fallbacks"])
    passed = len(layers) <= deployment.max_fallbacks
    shown = "; ".join(f"{layer}: {why}" for layer, why in list(layers.items())[:3])
    sentence = f"{len(layers)} layers fell back, {deployment.max_fallbacks} may" + (f": {shown}." if layers else ".")
    return Gate("layers_quantized_as_asked", passed, sentence, len(layers), deployment.max_fallbacks)


def size_and_scheme(metrics: Mapping[str, Any], deployment: DeploymentParams, scheme: Mapping[str, Any]) -> Gate:
    """Gate: the model has the current scheme of params.yaml, and its size and share are within the limits.

    Args:
        scheme: the parameters of `deployment.scheme`.
    """
    name = "size_and_scheme_as_asked"
    candidate_scheme = {key: value for key, value in metrics["scheme"].items() if key != "name"}
    megabytes, base = metrics["weights_bytes"] / 1e6, metrics["base_weights_bytes"] / 1e6
    limit = {"scheme": deployment.scheme, "megabytes": deployment.max_megabytes or base}
    actual = {"scheme": metrics["scheme"]["name"], "megabytes": megabytes}
    if candidate_scheme != dict(scheme) or metrics["scheme"]["name"] != deployment.scheme:
        keys = {*candidate_scheme, *scheme}
        wrong = sorted(key for key in keys if candidate_scheme.get(key) != scheme.get(key)) or ["name"]
        sentence = (
            f"Made under {metrics['scheme']['name']}, not as schemes.{deployment.scheme} is now: {', '.join(wrong)}."
        )
        return Gate(name, False, sentence, actual, limit)
    if deployment.max_megabytes is not None:
        passed = megabytes <= deployment.max_megabytes
        allowed = f"{deployment.max_megabytes:g} MB (deployment.max_megabytes)"
    else:
        passed, allowed = megabytes < base, f"less than the base model's {base:.1f} MB"
    share, least = metrics["share"], deployment.min_share
    actual, limit = actual | {"share": share}, limit | {"share": least}
    sentence = (
        f"{deployment.scheme} as asked, {megabytes:.1f} MB of weights; asked: {allowed}. {100 * share:.1f} % of its "
        f"matrices are quantized; asked: {100 * least:g} % (deployment.min_share)."
    )
    return Gate(name, passed and share >= least, sentence, actual, limit)


def not_withdrawn(why: str | None) -> Gate:
    """Gate: no person has rolled back this model.

    Args:
        why: the reason given; None if nobody rolled it back.
    """
    if why is None:
        return Gate("not_withdrawn", True, "Nobody took this model back.")
    sentence = f"Taken back by hand ({why}); `plumbline promote` puts it back by hand."
    return Gate("not_withdrawn", False, sentence, why)


def decide(record: Mapping[str, Any], checks: Sequence[Gate], champion: Champion | None) -> dict[str, Any]:
    """The decision and its reason, as `decision` and `why`.

    Args:
        record: `pair`, `model` and `chosen` of the candidate.
        checks: the candidate's gates, quality first.
    """
    pair = record["pair"]
    failed = [check for check in checks if not check.passed]
    comparison = checks[0].found or {}
    same = champion is not None and (champion.model == record["model"] or comparison.get("verdict") == "identical")
    decision: Decision
    if same and champion is not None:
        decision, why = "kept", f"{champion.pair} is the champion, and the candidate has its weights."
    elif failed:
        champion_after = f"{champion.pair} stays" if champion and champion.pair != pair else "the earlier one stays"
        champion_after = champion_after if champion else "there is none"
        decision = "rejected"
        why = f"{pair} does not become the champion ({champion_after}): " + " ".join(check.sentence for check in failed)
    elif champion is None:
        decision, why = "promoted", f"{pair}: {record['chosen']}; there was no champion."
    else:
        earlier = "the earlier one" if champion.pair == pair else champion.pair
        decision, why = "promoted", f"{pair} replaces {earlier}. {checks[0].sentence}"
    return {"decision": decision, "why": why}


def decided_before(previous: Path | None, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The previous record, if it promoted this candidate on the same inputs; else None."""
    path = previous / "promotion.json" if previous else None
    if path is None or not path.is_file():
        return None
    earlier: dict[str, Any] = read_json(path)
    about = (
        "pair", "figures", "candidates", "verdict", "model", "weights", "base_model", "fingerprint", "report_sha256",
    )  # fmt: skip
    same = all(earlier.get(name) == record[name] for name in about)
    return earlier if same and earlier.get("decision") == "promoted" else None
