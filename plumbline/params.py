"""Typed params.yaml: every section is validated before anything runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.base_model.params import ModelParams
from plumbline.calibration_choice.params import ChoiceParams
from plumbline.calibration_report.params import ReportParams
from plumbline.deployed_model.params import DeploymentParams
from plumbline.evaluation.params import EvaluationParams
from plumbline.production_drift.params import DriftParams
from plumbline.quantized_model.params import SchemeParams
from plumbline.raw_corpus.params import CorpusParams
from plumbline.sample_features.params import FeatureParams
from plumbline.study.params import StudyParams, require_read_together
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tracking.params import TrackingParams
from plumbline.workspace import workspace_root

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
REQUESTED = "requested.yaml"
HEADER = "# Entries of `studies:` in params.yaml that `plumbline study` was asked for; it writes this file.\n"


class GridParams(BaseModel):
    """The calibration choices and schemes whose pairs are quantized and compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calibrations: tuple[str, ...]
    schemes: tuple[str, ...]


class Params(BaseModel):
    """params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelParams
    corpus: CorpusParams
    tokenize: TokenizeParams = TokenizeParams()
    features: FeatureParams = FeatureParams()
    calibrations: dict[str, ChoiceParams]
    statistics: StatisticsParams = StatisticsParams()
    execution: ExecutionParams = ExecutionParams()
    schemes: dict[str, SchemeParams]
    grid: GridParams
    evaluation: EvaluationParams = EvaluationParams()
    report: ReportParams = ReportParams()
    deployment: DeploymentParams
    drift: DriftParams = DriftParams()
    studies: dict[str, StudyParams] = {}
    tracking: TrackingParams = TrackingParams()

    @model_validator(mode="after")
    def _names(self) -> Params:
        for section, names in (
            ("calibrations", self.calibrations),
            ("schemes", self.schemes),
            ("studies", self.studies),
        ):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"{section}: the name {name!r} becomes a folder and a DVC stage; use a-z, 0-9, '-' and '_'"
                    )
            wanted = getattr(self.grid, section, ())
            if unknown := [name for name in wanted if name not in names]:
                raise ValueError(f"grid.{section}: {unknown} not under {section}: (there: {sorted(names)})")
            if len(set(wanted)) < len(wanted):
                raise ValueError(f"grid.{section}: a name occurs twice")
        keys = [pair_key(c, s) for c in self.grid.calibrations for s in self.grid.schemes]
        if len(set(keys)) < len(keys):
            raise ValueError("grid: two pairs share the name CALIBRATION-SCHEME; rename a choice or a scheme")
        for name, study in self.studies.items():
            if unknown := [scheme for scheme in study.schemes if scheme not in self.schemes]:
                raise ValueError(
                    f"studies.{name}.schemes: {unknown} not under schemes: (there: {sorted(self.schemes)})"
                )
        studied = (scheme for study in self.studies.values() for scheme in study.schemes)
        for name in dict.fromkeys((*self.grid.schemes, *studied)):
            if "hessian" in self.schemes[name].reads and not self.statistics.hessian:
                raise ValueError(
                    f"schemes.{name} reads second moments, which statistics.hessian: false leaves out; write "
                    "statistics: {hessian: true}, or take the scheme out of grid and studies"
                )
        if self.execution.workers > self.statistics.shards:
            raise ValueError(
                f"execution.workers: {self.execution.workers} processes, but statistics.shards: "
                f"{self.statistics.shards} part(s) to share out; set shards to at least {self.execution.workers} (sums "
                "then differ in their last bits, and statistics are collected anew), or workers lower"
            )
        if self.deployment.scheme not in self.grid.schemes:
            raise ValueError(f"deployment.scheme: {self.deployment.scheme!r} is not in grid.schemes")
        if self.report.baseline is not None and self.report.baseline not in self.grid.calibrations:
            raise ValueError(f"report.baseline: {self.report.baseline!r} is not in grid.calibrations")
        return self

    def pairs(self) -> dict[str, tuple[str, str]]:
        """Key -> (calibration, scheme) of every pair of the grid, in order."""
        return {pair_key(c, s): (c, s) for c in self.grid.calibrations for s in self.grid.schemes}


def pair_key(calibration: str, scheme: str) -> str:
    """Partition key, DVC stage suffix and folder name of a quantized model, as DVC joins the values of a matrix."""
    return f"{calibration}-{scheme}"


def load_params(root: Path | None = None) -> Params:
    """Read params.yaml of the workspace.

    Raises:
        ValueError: the file is missing, is not YAML, or a value is invalid; the message names file, key and value.
    """
    path = (root or workspace_root()) / "params.yaml"
    if not path.is_file():
        raise ValueError(f"{path} not found: run inside a Plumbline workspace, or set PLUMBLINE_ROOT to one")
    return _load(path, path.stat().st_mtime_ns)


def requested(root: Path | None = None) -> list[str]:
    """The requested studies, in order, from requested.yaml, which DVC reads too."""
    path = (root or workspace_root()) / REQUESTED
    content = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    return [str(name) for name in content.get("requested") or []]


def request(names: Sequence[str], root: Path | None = None) -> None:
    """Add studies to requested.yaml, which makes them stages and partitions of the graph.

    Raises:
        ValueError: params.yaml has no such study, or its `statistics` do not fit studies.
    """
    params = load_params(root)
    studies = params.studies
    if unknown := [name for name in names if name not in studies]:
        raise ValueError(f"studies: {unknown} not in params.yaml (there: {sorted(studies)})")
    for name in names:
        reads = {part for scheme in studies[name].schemes for part in params.schemes[scheme].reads}
        require_read_together(params.statistics, "histogram" in reads)
    before = requested(root)
    after = [name for name in dict.fromkeys([*before, *names]) if name in studies]
    if after != before:
        from plumbline.artifact import replace_text  # imported here to keep commands fast

        path = (root or workspace_root()) / REQUESTED
        replace_text(path, HEADER + yaml.safe_dump({"requested": after}, default_flow_style=None))


@lru_cache(maxsize=8)
def _load(path: Path, mtime_ns: int) -> Params:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected sections such as `model:`, found {type(content).__name__}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        wrong = "\n".join(
            f"  {'.'.join(map(str, e['loc'])) or 'top level'}: {e['msg']} (found {e['input']!r:.80})"
            for e in error.errors()
        )
        raise ValueError(f"{path} is not valid:\n{wrong}") from error
