"""The Dagster definition of `raw_corpus`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from plumbline.graph.resources import DVC
from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, code_version, materialize
from plumbline.raw_corpus.params import CorpusParams

inbox = dg.AssetSpec(
    "inbox",
    group_name="1_corpus",
    kinds={"file"},
    owners=OWNERS,
    description="Text files that users add. A sensor launches a run once a new file is complete.",
)


@dg.asset(
    group_name="1_corpus",
    kinds={"parquet"},
    owners=OWNERS,
    required_resource_keys={DVC},
    code_version=code_version("raw_corpus"),
    automation_condition=ON_NEW_INPUT,
    deps=[inbox],
    description="Every document of every source in params.yaml (production and out-of-domain texts first) and of the "
    "inbox, one Parquet shard per file. Unchanged files are not read again. Bad rows are set aside with file, row and "
    "reason, and counted.",
)
def raw_corpus(context: dg.AssetExecutionContext) -> Iterator[Any]:
    from plumbline.graph.declared import require_declared
    from plumbline.raw_corpus.build import build_raw_corpus
    from plumbline.raw_corpus.file_hashes import FileHashes
    from plumbline.raw_corpus.intake import INTAKE, read_intake
    from plumbline.raw_corpus.summary import summary

    def build(step: Step, key: str, out: Path) -> None:
        params = CorpusParams.model_validate(step.params["corpus"])
        require_declared(step, params.folders())
        hashes = FileHashes(step.root / ".plumbline" / "file_hashes.json")
        build_raw_corpus(params, step.root, out, step.previous, hashes, read_intake(step.root / INTAKE))

    yield from materialize(context, build, summary)
