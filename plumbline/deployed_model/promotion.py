"""The promotion of a quantized model: the candidate, the gates that it must pass, and the decision."""

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
    """Its evaluation on today's report split; None with `problem`."""
    problem: str = ""
    """Why it could not be evaluated there."""


@dataclass(frozen=True)
class Inputs:
    """Folders of the graph that the decision reads; those of `models` and `sets` hold a folder per pair and choice."""

    evaluations: Path
    models: Path
    sets: Path
    samples: Path
    report: Path
    serving: Path | None = None


def choose_champion(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The calibration choice with the lowest mean KL divergence on the report split; among equals the first named.

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
    candidate: Path, champion: Path | None, problem: str, asked: DeploymentParams, report: ReportParams
) -> Gate:
    """Paired over the documents of the report split, as the verdict of the report is.

    Args:
        candidate: its evaluation.
        champion: the champion's evaluation on the same documents; None: there is no champion, or, with `problem`, it
            could not be evaluated.
    """
    name, limit = "quality_not_worse_than_the_champion", {"relative_high": asked.max_worse}
    if champion is None:
        return Gate(name, not problem, problem or "There is no champion yet to compare with.", None, limit)
    scheme = str(read_json(candidate / "metrics.json")["scheme"]["name"])
    both = {f"champion-{scheme}": champion, f"candidate-{scheme}": candidate}
    try:
        study = read_study(["champion", "candidate"], [scheme], both)
    except ValueError as error:
        return Gate(name, False, f"Candidate and champion cannot be compared: {error}", None, limit)
    [found] = judge(study, report.model_copy(update={"baseline": "champion"}))["comparisons"]
    documents = len(study.tokens)
    if found["verdict"] == "identical":
        return Gate(name, True, "The candidate's weights are the champion's, byte for byte.", found, limit)
    if "relative" not in found or found["relative"]["high"] is None:
        sentence = f"{documents} documents are too few to tell; evaluate more (evaluation.tokens_per_domain, splits)."
        return Gate(name, False, sentence, found, limit)
    middle, low, high = (100 * found["relative"][part] for part in ("difference", "low", "high"))
    passed = found["difference"] < 0 and found["relative"]["high"] <= asked.max_worse
    allowed = "lower is asked" if middle >= 0 else f"at most {100 * asked.max_worse:+.2g} % is allowed at its end"
    sentence = (
        f"Mean KL {middle:+.2f} % against the champion's on {documents} documents ({report.confidence:.0%} interval "
        f"{low:+.2f} to {high:+.2f} %)" + ("." if passed else f"; {allowed} (deployment.max_worse).")
    )
    return Gate(name, passed, sentence, found, limit)


def tokenization(model: Path, fingerprint: str, serving: Path | None, trust_remote_code: bool = False) -> Gate:
    """The fingerprint recomputed from the tokenizer that is served, under the policy of the calibration.

    Args:
        model: the candidate's folder.
        fingerprint: of the samples that it is evaluated on.
        serving: the folder of the tokenizer as served; None: the candidate's.
    """
    from transformers import AutoTokenizer

    record = read_json(model / "calibration.json")
    where = "the model's own folder" if serving is None else "the folder deployment.serving"
    name, asked = "tokenized_as_it_is_served", record["fingerprint"]
    if serving is not None and not serving.is_dir():
        return Gate(name, False, f"{where} does not exist; give the folder of the tokenizer.", None, asked)
    tokenizer = AutoTokenizer.from_pretrained(serving or model, trust_remote_code=trust_remote_code)
    found, parts = tokenizer_fingerprint(tokenizer, policy_of(record["fingerprint_parts"]))
    if found == asked == fingerprint:
        return Gate(name, True, f"One fingerprint from the samples to {where}: {found[:12]}.", found, asked)
    wrong = [part for part, value in record["fingerprint_parts"].items() if parts.get(part) != value]
    why = f"{', '.join(wrong)} differ" if wrong else f"the samples have {fingerprint[:12]}"
    sentence = f"Calibrated under fingerprint {asked[:12]}; the tokenizer in {where} gives {found[:12]}: {why}."
    return Gate(name, False, sentence, found, asked)


def leak(calibration_set: Path, samples: Path, asked: DeploymentParams) -> Gate:
    """Report documents that the calibration set holds: by id, by tokens, and nearly."""
    chosen = read_calibration_set(calibration_set, ["sample_id", "doc_ids", "input_ids"])
    ids = set(chosen["doc_ids"].combine_chunks().flatten().to_pylist())
    sample_ids = set(chosen["sample_id"].to_pylist())
    exact: set[str] = set()
    documents: set[str] = set()

    def texts() -> Any:
        for batch in iter_samples(samples, ["report"], ["doc_id", "sample_id", "input_ids"]):
            of = zip(batch["doc_id"].to_pylist(), batch["sample_id"].to_pylist(), batch["input_ids"], strict=True)
            for doc_id, sample_id, tokens in of:
                documents.add(doc_id)
                if doc_id in ids or sample_id in sample_ids:
                    exact.add(doc_id)
                else:
                    yield doc_id, tokens.values.to_numpy()

    tokens_of = [row.values.to_numpy() for row in chosen["input_ids"].combine_chunks()]
    found = near_duplicates(tokens_of, texts(), asked.near_duplicate)
    nearest: dict[str, Any] = {}
    for each in sorted(found, key=lambda overlap: -overlap.share):
        nearest.setdefault(each.document, each)
    allowed = int(asked.max_near_duplicates * len(documents))
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
            f"{first.share:.0%} of its runs with sample {first.sample}."
        )
    shown = {"exact": len(exact), "near_duplicates": len(nearest), "documents": len(documents)}
    return Gate("no_report_text_in_the_calibration_set", passed, sentence, shown, {"near_duplicates": allowed})


def fallbacks(metrics: Mapping[str, Any], asked: DeploymentParams) -> Gate:
    """Layers that fell back, against the limit."""
    layers = dict(metrics["fallbacks"])
    passed = len(layers) <= asked.max_fallbacks
    shown = "; ".join(f"{layer}: {why}" for layer, why in list(layers.items())[:3])
    sentence = f"{len(layers)} layers fell back, {asked.max_fallbacks} may" + (f": {shown}." if layers else ".")
    return Gate("layers_quantized_as_asked", passed, sentence, len(layers), asked.max_fallbacks)


def size_and_scheme(metrics: Mapping[str, Any], asked: DeploymentParams, scheme: Mapping[str, Any]) -> Gate:
    """The scheme as params.yaml has it now, and the weights' size.

    Args:
        scheme: the parameters of `asked.scheme`.
    """
    name = "size_and_scheme_as_asked"
    made = {key: value for key, value in metrics["scheme"].items() if key != "name"}
    megabytes, base = metrics["weights_bytes"] / 1e6, metrics["base_weights_bytes"] / 1e6
    limit = {"scheme": asked.scheme, "megabytes": asked.max_megabytes or base}
    found = {"scheme": metrics["scheme"]["name"], "megabytes": megabytes}
    if made != dict(scheme) or metrics["scheme"]["name"] != asked.scheme:
        wrong = sorted(key for key in {*made, *scheme} if made.get(key) != scheme.get(key)) or ["name"]
        sentence = f"Made under {metrics['scheme']['name']}, not as schemes.{asked.scheme} is now: {', '.join(wrong)}."
        return Gate(name, False, sentence, found, limit)
    if asked.max_megabytes is not None:
        passed, allowed = megabytes <= asked.max_megabytes, f"{asked.max_megabytes:g} MB (deployment.max_megabytes)"
    else:
        passed, allowed = megabytes < base, f"less than the base model's {base:.1f} MB"
    return Gate(
        name, passed, f"{asked.scheme} as asked, {megabytes:.1f} MB of weights; asked: {allowed}.", found, limit
    )


def not_withdrawn(why: str | None) -> Gate:
    """A model that a person took back is not put back by a machine.

    Args:
        why: the person's reason; None: nobody did.
    """
    if why is None:
        return Gate("not_withdrawn", True, "Nobody took this model back.")
    sentence = f"Taken back by hand ({why}); `plumbline promote` puts it back by hand."
    return Gate("not_withdrawn", False, sentence, why)


def decide(record: Mapping[str, Any], checks: Sequence[Gate], champion: Champion | None) -> dict[str, Any]:
    """`decision`, and `why` in a sentence.

    Args:
        record: `pair`, `model` and `chosen` of the candidate.
        checks: its gates, quality first.
    """
    pair = record["pair"]
    failed = [check for check in checks if not check.passed]
    comparison = checks[0].found or {}
    same = champion is not None and (champion.model == record["model"] or comparison.get("verdict") == "identical")
    decision: Decision
    if same and champion is not None:
        decision, why = "kept", f"{champion.pair} is the champion, and the candidate has its weights."
    elif failed:
        kept = f"{champion.pair} stays" if champion and champion.pair != pair else "the earlier one stays"
        kept = kept if champion else "there is none"
        decision = "rejected"
        why = f"{pair} does not become the champion ({kept}): " + " ".join(check.sentence for check in failed)
    elif champion is None:
        decision, why = "promoted", f"{pair}: {record['chosen']}; there was no champion."
    else:
        earlier = "the earlier one" if champion.pair == pair else champion.pair
        decision, why = "promoted", f"{pair} replaces {earlier}. {checks[0].sentence}"
    return {"decision": decision, "why": why}


def decided_before(previous: Path | None, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The earlier record, if it promoted this candidate on the very same inputs."""
    path = previous / "promotion.json" if previous else None
    if path is None or not path.is_file():
        return None
    earlier: dict[str, Any] = read_json(path)
    about = (
        "pair", "figures", "candidates", "verdict", "model", "weights", "base_model", "fingerprint", "report_sha256",
    )  # fmt: skip
    same = all(earlier.get(name) == record[name] for name in about)
    return earlier if same and earlier.get("decision") == "promoted" else None
