"""Promises that the UI shows as passed or failed, each read back from the artifacts on disk."""

from pathlib import Path
from typing import Any

import dagster as dg

from assets.activation_stats import activation_stats
from assets.calibration_set import calibration_set
from assets.deployed_model import deployed_model
from assets.quantized_model import quantized_model
from assets.raw_corpus import raw_corpus
from assets.tokenized_samples import tokenized_samples
from plumbline.artifact import read_json
from plumbline.deployed_model.check_specs import GATES
from plumbline.graph.step import as_metadata
from plumbline.params import load_params
from plumbline.workspace import workspace_root


def _folder(asset: str) -> Path:
    return workspace_root() / "data" / asset


def _keys(context: dg.AssetCheckExecutionContext, asset: str, names: list[str]) -> list[str]:
    """Partitions to check: those of the run, or all that exist."""
    run = context.op_execution_context
    if run.has_partition_key or run.has_partition_key_range:
        return list(run.partition_keys)
    return [name for name in names if (_folder(asset) / name).is_dir()]


def _result(wrong: list[str], good: str, metadata: dict[str, Any] | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=not wrong, description="; ".join(wrong[:5]) or good, metadata=metadata or {})


@dg.asset_check(asset=raw_corpus, blocking=True)
def every_row_is_accounted_for() -> dg.AssetCheckResult:
    """Rows read = documents kept + rows set aside, in every source file and in total."""
    manifest = read_json(_folder("raw_corpus") / "manifest.json")
    wrong = [
        f"{s['file']}: {s['rows']} rows, but {s['documents']} documents + {sum(s['rejected'].values())} set aside"
        for s in [*manifest["shards"], {"file": "total", **manifest["totals"]}]
        if s["rows"] != s["documents"] + sum(s["rejected"].values())
    ]
    totals = manifest["totals"]
    aside = sum(totals["rejected"].values())
    return _result(wrong, f"{totals['rows']} rows = {totals['documents']} documents + {aside} set aside", totals)


@dg.asset_check(asset=raw_corpus)
def no_file_of_the_inbox_is_held_back() -> dg.AssetCheckResult:
    """Every file that was dropped is part of the corpus; one that is not is named, with what is wrong and where.

    A warning: the rest of the corpus does not wait for it.
    """
    from plumbline.raw_corpus.summary import quarantine

    folder = _folder("raw_corpus")
    manifest = read_json(folder / "manifest.json")
    found = quarantine(folder)
    files = sum(shard["source"] == "inbox" for shard in manifest["shards"])
    said = [f"{of['file']}" + (f" row {of['row']}" if of["row"] != "" else "") + f": {of['why']}" for of in found]
    more = [f"and {len(said) - 5} more"] if len(said) > 5 else []
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join([*said[:5], *more]) or f"none of {files} files",
        metadata={"files": files, "held_back": dg.MetadataValue.json(found)},
    )


@dg.asset_check(asset=tokenized_samples, blocking=True)
def every_token_is_accounted_for() -> dg.AssetCheckResult:
    """Tokens of the documents = tokens of the samples + tokens lost, by reason."""
    counts = read_json(_folder("tokenized_samples") / "accounting.json")
    lost = {reason: what["tokens"] for reason, what in counts["lost"].items()}
    wrong = []
    if counts["tokens_in"] != counts["tokens_out"] + sum(lost.values()):
        wrong.append(f"{counts['tokens_in']} tokens in, {counts['tokens_out']} out, {lost} lost: they do not add up")
    good = f"{counts['tokens_in']} tokens = {counts['tokens_out']} in samples + {sum(lost.values())} lost"
    return _result(wrong, good, {"lost": dg.MetadataValue.json(counts["lost"])})


@dg.asset_check(asset=calibration_set, blocking=True)
def no_report_document_in_a_calibration_set(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Reported numbers come from documents that no calibration set contains."""
    import pyarrow.parquet as pq

    from plumbline.tokenized_samples.reader import read_samples

    report = set(read_samples(_folder("tokenized_samples"), ["report"], ["doc_id"]).column("doc_id").to_pylist())
    wrong, seen = [], 0
    for key in _keys(context, "calibration_set", list(load_params().calibrations)):
        documents = pq.read_table(_folder("calibration_set") / key / "samples.parquet", columns=["doc_ids"])
        seen += documents.num_rows
        if leaked := report.intersection(documents.column("doc_ids").combine_chunks().flatten().to_pylist()):
            wrong.append(f"{key}: {len(leaked)} documents of the report split, first {min(leaked)}")
    good = f"none of {len(report)} report documents is among {seen} calibration samples"
    return _result(wrong, good, {"report_documents": len(report), "calibration_samples": seen})


@dg.asset_check(asset=calibration_set, blocking=True)
def calibration_set_was_tokenized_as_the_corpus_is(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Tokenizer, special tokens, chat template and truncation have one fingerprint from samples to set."""
    from plumbline.tokenized_samples.reader import fingerprint_of

    expected = fingerprint_of(_folder("tokenized_samples"))
    wrong = []
    for key in _keys(context, "calibration_set", list(load_params().calibrations)):
        found = read_json(_folder("calibration_set") / key / "manifest.json")["fingerprint"]
        if found != expected:
            wrong.append(f"{key} was tokenized under {found}, the samples under {expected}")
    return _result(wrong, f"one fingerprint: {expected}")


@dg.asset_check(asset=calibration_set)
def calibration_set_represents_production(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The set is no farther from production than random draws of its size, over all metrics of the panel at once.

    A warning: to be different from production can be what a choice is for. One fair random draw in twenty is flagged.
    """
    wrong, good, found = [], [], {}
    for key in _keys(context, "calibration_set", list(load_params().calibrations)):
        result = read_json(_folder("calibration_set") / key / "representativeness.json")
        if result["primary"] is None:
            good.append(f"{key}: {result['sentences'][0]}")
            continue
        found[key] = {"p_value": result["p_value"], "flagged": result["flagged"]}
        metrics = result["references"][result["primary"]]["metrics"]
        if result["flagged"]:
            said = [metrics[name]["sentence"] for name in result["flagged"]]
            more = [f"And {len(said) - 3} more: see representativeness.json."] if len(said) > 3 else []
            wrong.append(f"{key}: {' '.join(said[:3] + more)}")
        else:
            good.append(
                f"{key}: no farther from production than random draws of its size (p = {result['p_value']:.2g})"
            )
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join([*wrong, *good][:5]),
        metadata={"sets": dg.MetadataValue.json(found)},
    )


@dg.asset_check(asset=activation_stats)
def every_site_saw_enough_tokens(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """No site saw fewer tokens than it has channels, as experts do that the router seldom chooses.

    A warning: such a site's statistics leave directions of its input open (see activation_stats/starved.py).
    """
    from plumbline.activation_stats.starved import sentence, starved_sites

    wrong, found = [], {}
    for key in _keys(context, "activation_stats", list(load_params().calibrations)):
        if starved := starved_sites(read_json(_folder("activation_stats") / key / "header.json")):
            wrong.append(f"{key}: {sentence(starved)}")
            found[key] = starved
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(wrong[:5]) or "every site saw at least as many tokens as it has channels",
        metadata={"starved": dg.MetadataValue.json(found)},
    )


@dg.asset_check(asset=quantized_model, blocking=True)
def model_carries_the_tokenizer_it_was_calibrated_with(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The fingerprint in the quantized model is that of the samples."""
    from plumbline.tokenized_samples.reader import fingerprint_of

    expected = fingerprint_of(_folder("tokenized_samples"))
    wrong = []
    for key in _keys(context, "quantized_model", list(load_params().pairs())):
        found = read_json(_folder("quantized_model") / key / "calibration.json")["fingerprint"]
        if found != expected:
            wrong.append(f"{key} was calibrated under {found}, the samples are now under {expected}")
    return _result(wrong, f"one fingerprint: {expected}")


@dg.asset_check(asset=quantized_model)
def no_layer_fell_back(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Every layer was quantized by the method asked for; one that fell back is named."""
    wrong = []
    for key in _keys(context, "quantized_model", list(load_params().pairs())):
        fallbacks = read_json(_folder("quantized_model") / key / "calibration.json")["fallbacks"]
        wrong += [f"{key}: {layer}" for layer in fallbacks]
    result = _result(wrong, "no layer fell back")
    return (
        result
        if result.passed
        else dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description=result.description)
    )


def _gate(name: str, promise: str) -> dg.AssetChecksDefinition:
    """What `deployed_model` held its candidate to, read back from the record.

    One that fails has kept the alias where it was. The run itself went well, and so did `dvc repro`: such a check is an
    error, but not `blocking` in Dagster's sense, which would fail the run.
    """

    @dg.asset_check(asset=deployed_model, name=name, description=promise)
    def check() -> dg.AssetCheckResult:
        record = read_json(_folder("deployed_model") / "promotion.json")
        [found] = [gate for gate in record["checks"] if gate["name"] == name]
        shown = {part: found[part] for part in ("found", "limit")}
        metadata = as_metadata({"candidate": record["pair"], "decision": record["decision"], **shown})
        return dg.AssetCheckResult(passed=found["passed"], description=found["sentence"], metadata=metadata)

    return check


GATE_CHECKS = [_gate(name, promise) for name, promise in GATES.items()]

CHECKS: list[dg.AssetChecksDefinition] = [
    every_row_is_accounted_for,
    no_file_of_the_inbox_is_held_back,
    every_token_is_accounted_for,
    no_report_document_in_a_calibration_set,
    calibration_set_was_tokenized_as_the_corpus_is,
    calibration_set_represents_production,
    every_site_saw_enough_tokens,
    model_carries_the_tokenizer_it_was_calibrated_with,
    no_layer_fell_back,
    *GATE_CHECKS,
]


def checks_of(asset: dg.AssetsDefinition) -> list[dg.AssetChecksDefinition]:
    """The checks that run along with an asset."""
    return [check for check in CHECKS if asset.key in {spec.asset_key for spec in check.check_specs}]
