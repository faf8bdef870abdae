"""The Dagster definition of `tokenized_samples`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from assets.raw_corpus import raw_corpus
from plumbline.graph.launch import launched
from plumbline.graph.resources import BASE_MODEL, DVC
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, base_model, code_version, materialize
from plumbline.tokenized_samples.params import TokenizeParams


class TokenizationConfig(dg.Config):
    """How this launch tokenizes; no byte depends on it."""

    workers: int | None = Field(
        default=None, description="Number of processes; omitted: as under `tokenize:` in params.yaml."
    )


@dg.asset(
    group_name="1_corpus",
    kinds={"parquet", "huggingface"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC},
    code_version=code_version("tokenized_samples"),
    automation_condition=ON_NEW_INPUT,
    deps=[raw_corpus],
    description="The documents tokenized as in production: with the base model's tokenizer, special tokens and chat "
    "template. Long documents are cut by policy. Each document is in one of the splits pool, tuning, report and "
    "production. Every lost token is counted by reason.",
)
def tokenized_samples(context: dg.AssetExecutionContext, config: TokenizationConfig) -> Iterator[Any]:
    from plumbline.tokenized_samples.build import build_tokenized_samples
    from plumbline.tokenized_samples.summary import summary

    def build(step: Step, key: str, out: Path) -> None:
        params = TokenizeParams.model_validate(step.params["tokenize"])
        params = launched(params, config.model_dump(), "tokenized_samples")
        build_tokenized_samples(params, base_model(step), step.input("raw_corpus"), out, step.previous)

    yield from materialize(context, build, summary)
