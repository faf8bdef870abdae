"""The Dagster definition of `sample_features`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.tokenized_samples import tokenized_samples
from plumbline.graph.pool import HEAVY
from plumbline.graph.resources import BASE_MODEL, DVC
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, base_model, code_version, materialize
from plumbline.params import load_params
from plumbline.sample_features.params import FeatureParams


@dg.asset(
    group_name="1_corpus",
    kinds={"numpy", "huggingface"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC},
    pool=HEAVY,
    code_version=code_version("sample_features"),
    automation_condition=ON_NEW_INPUT,
    deps=[tokenized_samples],
    description="The features that strategies use: length and sentence embedding of every sample, and base-model "
    "signatures of some. Computed once per sample, until embedder or base model change.",
)
def sample_features(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.sample_features.build import build_sample_features
    from plumbline.sample_features.summary import summary

    def build(step: Step, key: str, out: Path) -> None:
        params, samples = FeatureParams.model_validate(step.params["features"]), step.input("tokenized_samples")
        execution = load_params(step.root).execution
        build_sample_features(params, base_model(step), samples, out, step.previous, step.root, execution)

    yield from materialize(context, build, summary)
