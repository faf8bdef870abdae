"""The Dagster definition of `raw_corpus`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from plumbline.graph.step import ON_NEW_INPUT, OWNERS, Step, code_version, materialize
from plumbline.raw_corpus.params import CorpusParams, Directory

inbox = dg.AssetSpec(
    "inbox",
    group_name="1_corpus",
    kinds={"file"},
    owners=OWNERS,
    description="Files that people drop. A sensor watches; once a new file is complete, it starts one run.",
)


@dg.asset(
    group_name="1_corpus",
    kinds={"parquet"},
    owners=OWNERS,
    code_version=code_version("raw_corpus"),
    automation_condition=ON_NEW_INPUT,
    deps=[inbox],
    description="Every document of every source in params.yaml (production and out-of-domain texts first) and of the "
    "inbox, one Parquet shard per file. A file that did not change is not read again; a bad row is set aside with its "
    "file, row and reason, and counted.",
)
def raw_corpus(context: dg.AssetExecutionContext) -> Iterator[Any]:
    def build(step: Step, key: str, out: Path) -> dict[str, Any]:
        from plumbline.raw_corpus.file_hashes import FileHashes
        from plumbline.raw_corpus.ingest import build_raw_corpus
        from plumbline.raw_corpus.intake import INTAKE, read_intake

        params = CorpusParams.model_validate(step.params["corpus"])
        _require_declared(params, step)
        hashes = FileHashes(step.root / ".plumbline" / "file_hashes.json")
        intake = read_intake(step.root / INTAKE)
        return build_raw_corpus(params, step.root, out, step.previous, hashes, intake)

    yield from materialize(context, build)


def _require_declared(params: CorpusParams, step: Step) -> None:
    """Every folder that is read must be a dependency in dvc.yaml, or neither door would notice that it changed."""
    declared = [(step.root / path).resolve() for path in step.inputs]
    folders = {name: source.path for name, source in params.in_order().items() if isinstance(source, Directory)}
    for name, path in folders.items():
        folder = (step.root / path).resolve()
        if not any(folder == d or d in folder.parents for d in declared):
            raise ValueError(
                f"corpus source {name!r} reads {path}, which dvc.yaml does not list: add it to the deps of raw_corpus "
                f"there (deps: [..., {path}]), so that a change of its files is seen"
            )
