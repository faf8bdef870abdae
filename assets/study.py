"""The Dagster definition of `study`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.sample_features import sample_features
from assets.tokenized_samples import tokenized_samples
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.params import ModelParams
from plumbline.graph.partitions import STUDIES
from plumbline.graph.step import OWNERS, Step, code_version, materialize
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.params import StudyParams

PRESENTATION = ("plumbline/calibration_report", "plumbline/study")
"""Code that decides how results are judged and shown, and not what is measured (`MEASURING` aside)."""
MEASURING = ("controls.py", "distances.py", "draws.py", "measuring.py")


@dg.asset(
    group_name="4_verdict",
    kinds={"html", "mlflow", "pytorch"},
    owners=OWNERS,
    partitions_def=STUDIES,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=code_version("study"),
    deps=[tokenized_samples, sample_features],  # no automation: it takes long, so it runs when somebody asks for it
    description="Is one way to choose calibration texts better than another? Rules against a baseline and controls, "
    "over many paired draws, sizes and schemes, with confidence intervals. Runs on request: `plumbline study`.",
)
def study(context: dg.AssetExecutionContext) -> Iterator[Any]:
    def build(step: Step, key: str, out: Path) -> dict[str, Any]:
        from plumbline.artifact import sha256_files
        from plumbline.calibration_set.pool import Sources
        from plumbline.study import measuring
        from plumbline.study.build import build_study

        params = StudyParams.model_validate(step.params[f"studies.{key}"])
        model = ModelParams.model_validate(step.params["model"])
        code = {path: md5 for path, md5 in step.code.items() if not path.startswith(PRESENTATION)}
        return build_study(
            params,
            {name: SchemeParams.model_validate(step.params["schemes"][name]) for name in params.schemes},
            StatisticsParams.model_validate(step.params["statistics"]),
            Sources(step.input("tokenized_samples"), step.input("sample_features"), model, step.root),
            step.root / ".plumbline" / "study",
            {**code, **step.inputs, **sha256_files(Path(measuring.__file__).parent, MEASURING)},
            out,
            key,
        )

    def track(step: Step, key: str, summary: Mapping[str, Any]) -> dict[str, Any]:
        from plumbline.tracking.study import log_study

        return log_study(step, key, context.run_id)

    yield from materialize(context, build, after=track)
