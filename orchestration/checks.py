"""The asset checks."""

from collections.abc import Iterator

import dagster as dg

from assets.activation_stats import activation_stats
from assets.calibration_set import calibration_set
from assets.deployed_model import deployed_model
from assets.quantized_model import quantized_model
from assets.raw_corpus import raw_corpus
from assets.tokenized_samples import tokenized_samples
from plumbline.deployed_model.check_specs import GATES
from plumbline.graph import checks
from plumbline.graph.check_result import as_result, data_folder, partitions, runs_alone
from plumbline.graph.served import served_as_simulated as served_outcome
from plumbline.workspace import workspace_root


@dg.asset_check(asset=raw_corpus, blocking=True)
def every_row_is_accounted_for() -> dg.AssetCheckResult:
    """Rows read = documents + rows set aside, in every source file and in total."""
    return as_result(checks.every_row_is_accounted_for(data_folder()))


@dg.asset_check(asset=raw_corpus)
def no_file_is_held_back() -> dg.AssetCheckResult:
    """Every file of the inbox, and every readable file of a source, is in the corpus; others are listed with why.

    A failure is a warning: it does not block the rest of the corpus.
    """
    return as_result(checks.no_file_of_the_inbox_is_held_back(data_folder()))


@dg.asset_check(asset=tokenized_samples, blocking=True)
def every_token_is_accounted_for() -> dg.AssetCheckResult:
    """Tokens of the documents = tokens of the samples + tokens lost, by reason."""
    return as_result(checks.every_token_is_accounted_for(data_folder()))


@dg.asset_check(asset=tokenized_samples)
def no_control_tokens_in_texts() -> dg.AssetCheckResult:
    """No document contains the literal of a special token, such as `<s>` or a chat that was rendered beforehand.

    A failure is a warning: such texts are tokenized as in production, where they do the same.
    """
    return as_result(checks.no_document_spells_control_tokens(data_folder()))


@dg.asset_check(asset=calibration_set, blocking=True)
def no_report_document_is_used(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """No calibration set contains a document of the report split."""
    choices = partitions(context, calibration_set)
    return as_result(checks.no_report_document_in_a_calibration_set(data_folder(), choices))


@dg.asset_check(asset=calibration_set, blocking=True)
def tokenized_as_the_corpus(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The calibration set has the tokenization fingerprint of the samples: tokenizer, special tokens, chat template."""
    choices = partitions(context, calibration_set)
    return as_result(checks.calibration_set_was_tokenized_as_the_corpus_is(data_folder(), choices))


@dg.asset_check(asset=calibration_set)
def represents_production(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The set is no farther from production than random draws of its size, tested over all metrics of the panel.

    A failure is a warning: a choice may differ from production on purpose, and one random draw in twenty is flagged.
    """
    choices = partitions(context, calibration_set)
    return as_result(checks.calibration_set_represents_production(data_folder(), choices))


@dg.asset_check(asset=activation_stats)
def every_site_saw_enough_tokens(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Every site saw at least as many tokens as it has channels; rarely routed experts may not.

    A failure is a warning: with fewer tokens the Hessian of a site is singular (see activation_stats/starved.py).
    """
    return as_result(checks.every_site_saw_enough_tokens(data_folder(), partitions(context, activation_stats)))


@dg.asset_check(asset=quantized_model, blocking=True)
def carries_its_tokenizer(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The quantized model has the tokenization fingerprint of the samples."""
    pairs = partitions(context, quantized_model)
    return as_result(checks.model_carries_the_tokenizer_it_was_calibrated_with(data_folder(), pairs))


@dg.asset_check(asset=quantized_model)
def no_layer_fell_back(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Every layer was quantized by the requested method; layers that fell back are listed."""
    return as_result(checks.no_layer_fell_back(data_folder(), partitions(context, quantized_model)))


@dg.asset_check(asset=quantized_model)
def most_matrices_are_quantized(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """95 % or more of the matrices outside embeddings, head, routers and towers are quantized; the rest is listed."""
    return as_result(checks.most_matrices_are_quantized(data_folder(), partitions(context, quantized_model)))


@dg.multi_asset_check(
    name="served_as_simulated",
    specs=[
        dg.AssetCheckSpec(
            "served_as_simulated",
            asset=quantized_model,
            description="vLLM, in an environment of its own (`make engine`), answers as transformers does, on which "
            "the evaluation rests. On request only: the job serve_check, or `plumbline serve-check`.",
        )
    ],
    can_subset=True,  # so that it may give no result
)
def served_as_simulated(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
    """Serve the models that have not been served since they changed; nothing in a run that makes models."""
    if runs_alone(context):
        yield as_result(served_outcome(workspace_root(), partitions(context, quantized_model)))


def _gate(name: str, description: str) -> dg.AssetChecksDefinition:
    """A promotion gate of `deployed_model` as an asset check, read from promotion.json.

    After a failed gate the alias has not moved, but the run itself and `dvc repro` succeeded. The check is therefore an
    error, but not `blocking`, which would fail the run.
    """

    @dg.asset_check(asset=deployed_model, name=name, description=description)
    def check() -> dg.AssetCheckResult:
        return as_result(checks.promotion_gate(data_folder(), name))

    return check


GATE_CHECKS = [_gate(name, description) for name, description in GATES.items()]

CHECKS: list[dg.AssetChecksDefinition] = [
    every_row_is_accounted_for,
    no_file_is_held_back,
    every_token_is_accounted_for,
    no_control_tokens_in_texts,
    no_report_document_is_used,
    tokenized_as_the_corpus,
    represents_production,
    every_site_saw_enough_tokens,
    carries_its_tokenizer,
    no_layer_fell_back,
    most_matrices_are_quantized,
    served_as_simulated,
    *GATE_CHECKS,
]
