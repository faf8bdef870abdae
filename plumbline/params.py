"""Typed params.yaml: every section is validated before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.base_model.params import ModelParams
from plumbline.calibration_choice.params import ChoiceParams
from plumbline.calibration_report.params import ReportParams
from plumbline.deployed_model.params import DeploymentParams
from plumbline.evaluation.params import EvaluationParams
from plumbline.params_errors import Mistakes, explained, line_of
from plumbline.params_numbers import mistakes_in_numbers
from plumbline.production_drift.params import DriftParams
from plumbline.quantized_model.params import SchemeParams
from plumbline.raw_corpus.document import OUT_OF_DOMAIN, PRODUCTION
from plumbline.raw_corpus.params import CorpusParams
from plumbline.sample_features.params import FeatureParams
from plumbline.sample_page.params import PageParams
from plumbline.study.params import StudyParams
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tracking.params import TrackingParams
from plumbline.versioning.params import StorageParams
from plumbline.workspace import workspace_root
from plumbline.yaml_file import read_yaml

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
FREE_NAME = re.compile(r"\w[\w.-]*")
LONGEST_NAME = 100
"""A pair's key, a scratch folder's prefix and suffix fit into the 255 bytes of a file name with two such names."""
RESERVED_SOURCES = ("inbox", PRODUCTION, OUT_OF_DOMAIN)
SEEDS = 2**63


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
    pages: PageParams = PageParams()
    deployment: DeploymentParams
    drift: DriftParams = DriftParams()
    studies: dict[str, StudyParams] = {}
    tracking: TrackingParams = TrackingParams()
    storage: StorageParams = StorageParams()

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        if mistakes := [*_mistakes_in_names(self), *_mistakes_in_grid(self), *_mistakes_in_numbers(self)]:
            raise Mistakes(mistakes)
        return self

    def pairs(self) -> dict[str, tuple[str, str]]:
        """Key -> (calibration, scheme) of every pair of the grid, in order."""
        return {pair_key(c, s): (c, s) for c in self.grid.calibrations for s in self.grid.schemes}


Mistake = tuple[tuple[str, ...], str]
"""Keys from the top of params.yaml, and a sentence."""


def _mistakes_in_names(params: Params) -> Iterator[Mistake]:
    sections: dict[tuple[str, ...], Iterable[str]] = {
        ("calibrations",): params.calibrations,
        ("schemes",): params.schemes,
        ("studies",): params.studies,
    }
    for keys, names in sections.items():
        for name in names:
            if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
                yield (
                    (*keys, name),
                    (
                        f"the name {name!r:.60} becomes a folder and a DVC stage; use a-z, 0-9, '-' and '_', at most "
                        f"{LONGEST_NAME} characters"
                    ),
                )
    free: dict[tuple[str, ...], list[str]] = {("corpus", "sources"): list(params.corpus.sources)}
    free |= {("studies", study, "rules"): list(entry.rules) for study, entry in params.studies.items()}
    for keys, names in free.items():
        for name in names:
            if not FREE_NAME.fullmatch(name) or len(name) > LONGEST_NAME:
                yield (
                    (*keys, name),
                    (
                        f"the name {name!r:.60} becomes part of paths; use letters, digits, '.', '-' and '_', first a "
                        f"letter or digit, at most {LONGEST_NAME} characters"
                    ),
                )
    for name in params.corpus.sources:
        if name in RESERVED_SOURCES:
            yield ("corpus", "sources", name), f"{name} is a name that the corpus uses itself; rename the source"


def _mistakes_in_grid(params: Params) -> Iterator[Mistake]:
    for section in ("calibrations", "schemes"):
        wanted, names = getattr(params.grid, section), getattr(params, section)
        if unknown := [name for name in wanted if name not in names]:
            yield ("grid", section), f"{unknown} not under {section}: (there: {sorted(names)})"
        if len(set(wanted)) < len(wanted):
            yield ("grid", section), "a name occurs twice"
        if not wanted:
            yield ("grid", section), "found none, expected at least one"
    pairs = [
        (pair_key(c, s), c, s)
        for c in dict.fromkeys(params.grid.calibrations)
        for s in dict.fromkeys(params.grid.schemes)
    ]
    if len({key for key, _, _ in pairs}) < len(pairs):
        yield ("grid",), "two pairs share the name CALIBRATION-SCHEME; rename a choice or a scheme"
    for name, study in params.studies.items():
        if unknown := [scheme for scheme in study.schemes if scheme not in params.schemes]:
            yield ("studies", name, "schemes"), f"{unknown} not under schemes: (there: {sorted(params.schemes)})"
    studied = (scheme for study in params.studies.values() for scheme in study.schemes)
    for name in dict.fromkeys((*params.grid.schemes, *studied)):
        if name in params.schemes and "hessian" in params.schemes[name].reads and not params.statistics.hessian:
            yield (
                ("schemes", name),
                (
                    "reads second moments, which statistics.hessian: false leaves out; write statistics: "
                    "{hessian: true}, or take the scheme out of grid and studies"
                ),
            )
    for name in dict.fromkeys(params.grid.schemes):  # a study collects what its schemes read
        if name in params.schemes and "cache" in params.schemes[name].reads and not params.statistics.cache:
            yield (
                ("schemes", name),
                (
                    "kv_cache reads keys and values, which statistics hold with statistics: {cache: true} only; write "
                    "that (the statistics of every set are then collected once more), or take the scheme out of grid"
                ),
            )
    if params.deployment.scheme not in params.grid.schemes:
        yield ("deployment", "scheme"), f"{params.deployment.scheme!r} is not in grid.schemes"
    if params.report.baseline is not None and params.report.baseline not in params.grid.calibrations:
        yield ("report", "baseline"), f"{params.report.baseline!r} is not in grid.calibrations"


def _mistakes_in_numbers(params: Params) -> Iterator[Mistake]:
    splits = params.tokenize.splits
    if splits.tuning + splits.report >= 1:
        yield (
            ("tokenize", "splits"),
            (
                f"tuning {splits.tuning:g} and report {splits.report:g} sum to {splits.tuning + splits.report:g}, "
                "expected less than 1: the rest is the pool that sets are chosen from; lower one of them"
            ),
        )
    if splits.report == 0:
        yield (
            ("tokenize", "splits"),
            ("report is 0, expected more: models are evaluated on its documents; 0.1 is usual"),
        )
    if splits.tuning == 0 and params.corpus.production is None:
        yield (
            ("tokenize", "splits"),
            (
                "tuning is 0, expected more: without corpus.production its documents are what a set should represent; "
                "0.1 is usual"
            ),
        )
    seeds: dict[tuple[str, ...], int] = {
        ("calibrations", n, "seed"): entry.seed for n, entry in params.calibrations.items()
    }
    seeds |= {("studies", n, "seed"): entry.seed for n, entry in params.studies.items()} | {
        ("report", "seed"): params.report.seed
    }
    for keys, seed in seeds.items():
        if not 0 <= seed < SEEDS:
            yield keys, f"found {seed}, expected 0 to {SEEDS - 1}, which every random generator takes"


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
    status = path.stat()
    return _load(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _load(path: Path, mtime_ns: int, size: int) -> Params:
    file = read_yaml(path)
    if not isinstance(file.content, dict):
        kind = "nothing" if file.content is None else type(file.content).__name__
        raise ValueError(f"{path}: expected sections such as `model:`, found {kind}")
    mistakes = [line_of(file, keys, sentence) for keys, sentence in mistakes_in_numbers(Params, file.content)]
    try:
        params = Params.model_validate(file.content)
    except ValidationError as error:
        mistakes.insert(0, explained(error, file, Params))
    if mistakes:
        raise ValueError(f"{path} is not valid:\n" + "\n".join(dict.fromkeys(mistakes)))
    return params
