"""The asset checks. Each reads the artifacts on disk.

Every check takes the folder `data` of a workspace, and for a partitioned asset the partitions to check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json


@dataclass(frozen=True)
class CheckOutcome:
    """The result of a check."""

    passed: bool
    description: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warn: bool = False
    """A failure is a warning, not an error."""


def every_row_is_accounted_for(data: Path) -> CheckOutcome:
    """Rows read = documents + rows set aside, in every source file and in total."""
    manifest = read_json(data / "raw_corpus" / "manifest.json")
    wrong = [
        f"{shard['file']}: {shard['rows']} rows, but {shard['documents']} documents + "
        f"{sum(shard['rejected'].values())} set aside"
        for shard in [*manifest["shards"], {"file": "total", **manifest["totals"]}]
        if shard["rows"] != shard["documents"] + sum(shard["rejected"].values())
    ]
    totals = manifest["totals"]
    rejected = sum(totals["rejected"].values())
    good = f"{totals['rows']} rows = {totals['documents']} documents + {rejected} set aside"
    return _outcome(wrong, good, totals)


def no_file_of_the_inbox_is_held_back(data: Path) -> CheckOutcome:
    """Every file of the inbox, and every readable file of a source, is part of the corpus; others are listed with why.

    "Held back" is what `raw_corpus.summary.quarantine` lists.
    """
    from plumbline.raw_corpus.quarantine import quarantine

    manifest = read_json(data / "raw_corpus" / "manifest.json")
    held_back = quarantine(data / "raw_corpus")
    files = sum(shard["source"] == "inbox" for shard in manifest["shards"])
    sentences = [
        f"{row['file']}" + (f" row {row['row']}" if row["row"] != "" else "") + f": {row['why']}" for row in held_back
    ]
    good = f"all {len(manifest['shards'])} files are in the corpus"
    return _outcome(sentences, good, {"files": files, "held_back": held_back}, warn=True)


def every_token_is_accounted_for(data: Path) -> CheckOutcome:
    """Tokens of the documents = tokens of the samples + tokens lost, by reason."""
    counts = read_json(data / "tokenized_samples" / "accounting.json")
    lost = {reason: loss["tokens"] for reason, loss in counts["lost"].items()}
    wrong = []
    if counts["tokens_in"] != counts["tokens_out"] + sum(lost.values()):
        wrong.append(
            f"{counts['tokens_in']} tokens in, {counts['tokens_out']} out, {lost} lost: the counts do not add up"
        )
    good = f"{counts['tokens_in']} tokens = {counts['tokens_out']} in samples + {sum(lost.values())} lost"
    return _outcome(wrong, good, {"lost": counts["lost"]})


def no_document_spells_control_tokens(data: Path) -> CheckOutcome:
    """No document contains the literal of a special token; see tokenized_samples/control_tokens.py."""
    from plumbline.tokenized_samples.control_tokens import sentence

    accounting = read_json(data / "tokenized_samples" / "accounting.json")
    warning = sentence(accounting)
    good = f"none of {accounting['documents_in']} documents spells a control token"
    return CheckOutcome(warning is None, warning or good, accounting["control_tokens"], warn=True)


def no_report_document_in_a_calibration_set(data: Path, choices: Iterable[str]) -> CheckOutcome:
    """No calibration set contains a document of the report split."""
    import pyarrow.parquet as pq

    from plumbline.tokenized_samples.reader import read_samples

    report = set(read_samples(data / "tokenized_samples", ["report"], ["doc_id"]).column("doc_id").to_pylist())
    wrong, samples = [], 0
    for choice in choices:
        documents = pq.read_table(data / "calibration_set" / choice / "samples.parquet", columns=["doc_ids"])
        samples += documents.num_rows
        if leaked := report.intersection(documents.column("doc_ids").combine_chunks().flatten().to_pylist()):
            wrong.append(f"{choice}: {len(leaked)} documents of the report split, first {min(leaked)}")
    good = f"none of {len(report)} report documents is among {samples} calibration samples"
    return _outcome(wrong, good, {"report_documents": len(report), "calibration_samples": samples})


def calibration_set_was_tokenized_as_the_corpus_is(data: Path, choices: Iterable[str]) -> CheckOutcome:
    """Every calibration set has the tokenization fingerprint of the samples."""
    records = {choice: data / "calibration_set" / choice / "manifest.json" for choice in choices}
    return _one_fingerprint(data, records, "{} was tokenized under {}, the samples under {}")


def _one_fingerprint(data: Path, records: Mapping[str, Path], otherwise: str) -> CheckOutcome:
    """Whether the record of each name has the fingerprint of the samples.

    Args:
        otherwise: the sentence with name, its fingerprint and the samples'.
    """
    from plumbline.tokenized_samples.reader import fingerprint_of

    expected = fingerprint_of(data / "tokenized_samples")
    fingerprints = {name: read_json(record)["fingerprint"] for name, record in records.items()}
    wrong = [otherwise.format(name, each, expected) for name, each in fingerprints.items() if each != expected]
    return _outcome(wrong, f"one fingerprint: {expected}")


def calibration_set_represents_production(data: Path, choices: Iterable[str]) -> CheckOutcome:
    """No set is farther from production than random draws of its size, tested over all metrics of the panel."""
    wrong, good, sets = [], [], {}
    for choice in choices:
        result = read_json(data / "calibration_set" / choice / "representativeness.json")
        if result["primary"] is None:
            good.append(f"{choice}: {result['sentences'][0]}")
            continue
        sets[choice] = {"p_value": result["p_value"], "flagged": result["flagged"]}
        metrics = result["references"][result["primary"]]["metrics"]
        if result["flagged"]:
            others = len(result["flagged"]) - 1  # they are in order, the farthest first
            more = f" (and {others} more distances beyond chance)" if others else ""
            wrong.append(
                (result["p_value"], f"{choice}: {metrics[result['flagged'][0]]['sentence'].rstrip('.')}{more}")
            )
        else:
            p_value = f"{result['p_value']:.2g}"
            good.append(f"{choice}: no farther from production than random draws of its size (p = {p_value})")
    if wrong:
        return _outcome([text for _, text in sorted(wrong, key=lambda one: one[0])], "", {"sets": sets}, warn=True)
    return CheckOutcome(True, "; ".join(good[:5]), {"sets": sets}, warn=True)


def every_site_saw_enough_tokens(data: Path, choices: Iterable[str]) -> CheckOutcome:
    """Every site saw at least as many tokens as it has channels."""
    from plumbline.activation_stats.starved import sentence, starved_sites

    by_choice = {}
    for choice in choices:
        if starved := starved_sites(read_json(data / "activation_stats" / choice / "header.json")):
            by_choice[choice] = starved
    wrong = [
        f"{choice}: {sentence(sites)}" for choice, sites in sorted(by_choice.items(), key=lambda one: -len(one[1]))
    ]
    good = "every site saw at least as many tokens as it has channels"
    return _outcome(wrong, good, {"starved": by_choice}, warn=True)


def model_carries_the_tokenizer_it_was_calibrated_with(data: Path, pairs: Iterable[str]) -> CheckOutcome:
    """Every quantized model has the tokenization fingerprint of the samples."""
    records = {pair: data / "quantized_model" / pair / "calibration.json" for pair in pairs}
    return _one_fingerprint(data, records, "{} was calibrated under {}, the samples are now under {}")


def no_layer_fell_back(data: Path, pairs: Iterable[str]) -> CheckOutcome:
    """Every layer was quantized by the requested method; layers that fell back are listed."""
    wrong = [
        f"{pair}: {layer}"
        for pair in pairs
        for layer in read_json(data / "quantized_model" / pair / "calibration.json")["fallbacks"]
    ]
    return _outcome(wrong, "no layer fell back", warn=True)


def most_matrices_are_quantized(data: Path, pairs: Iterable[str]) -> CheckOutcome:
    """Every model is smaller than its base and has 95 % of its matrices' weights quantized, not counting embeddings,
    head, routers and towers; what is left is listed with the reason."""
    from plumbline.quantized_model.coverage import LEAST_SHARE

    wrong, left = [], {}
    for pair in pairs:
        coverage = read_json(data / "quantized_model" / pair / "calibration.json")["coverage"]
        left[pair] = coverage["left"]
        if coverage["share"] < LEAST_SHARE:
            reasons = Counter(coverage["left"].values()).most_common(2)
            shown = "; ".join(f"{reason} ({number} tensors)" for reason, number in reasons)
            wrong.append((coverage["share"], f"{pair}: {100 * coverage['share']:.1f} % quantized; left: {shown}"))
    return _outcome(
        [text for _, text in sorted(wrong)],
        f"{100 * LEAST_SHARE:.0f} % or more of the matrices are quantized",
        {"left": left},
        warn=True,
    )


def promotion_gate(data: Path, name: str) -> CheckOutcome:
    """The result of one promotion gate of `deployed_model`, from promotion.json."""
    record = read_json(data / "deployed_model" / "promotion.json")
    [gate] = [gate for gate in record["checks"] if gate["name"] == name]
    fields = {"candidate": record["pair"], "decision": record["decision"]}
    fields |= {"found": gate["found"], "limit": gate["limit"]}
    metadata = {key: value for key, value in fields.items() if value is not None and value not in ({}, [])}
    return CheckOutcome(gate["passed"], gate["sentence"], metadata)


def _outcome(
    wrong: Sequence[str], good: str, metadata: Mapping[str, Any] | None = None, warn: bool = False
) -> CheckOutcome:
    """One sentence: what is good, or the first of what is wrong, which is the worst; all of it is in the metadata."""
    more = f"; and {len(wrong) - 1} more, in the metadata" if len(wrong) > 1 else ""
    every = {"all": list(wrong)} if len(wrong) > 1 else {}
    return CheckOutcome(not wrong, wrong[0] + more if wrong else good, {**(metadata or {}), **every}, warn)
