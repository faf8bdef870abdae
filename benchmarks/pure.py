"""The study as pure functions called one after the other: no Dagster, no DVC, no MLflow. Writes seconds.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.params import load_params, project_root


def main() -> None:
    root = project_root()
    params, data = load_params(root), root / "data"
    seconds: dict[str, float] = {}

    def made(asset: str, build: Callable[..., Any], *arguments: Any, key: str = "", last: tuple[Any, ...] = ()) -> None:
        """Call `build(*arguments, out, *last)` with a new output folder."""
        out = data / asset / key
        out.mkdir(parents=True)
        started = time.perf_counter()
        build(*arguments, out, *last)
        seconds[asset] = seconds.get(asset, 0) + time.perf_counter() - started

    from assets.activation_stats.collect import build_activation_stats
    from assets.base_model.load import model_folder
    from assets.calibration_choice.choice import build_choice
    from assets.calibration_report.report import build_calibration_report
    from assets.calibration_set.select import build_calibration_set
    from assets.evaluation.evaluate import build_evaluation
    from assets.quantized_model.build import build_quantized_model
    from assets.raw_corpus.ingest import build_raw_corpus
    from assets.sample_features.embed import build_sample_features
    from assets.tokenized_samples.tokenize import build_tokenized_samples

    model, samples = model_folder(params.model, root), data / "tokenized_samples"
    made("raw_corpus", build_raw_corpus, params.corpus, root)
    made("tokenized_samples", build_tokenized_samples, params.tokenize, model, data / "raw_corpus")
    made("sample_features", build_sample_features, params.features, model, samples, last=(None, root))
    for c in params.grid.calibrations:
        made("calibration_choice", build_choice, c, params.calibrations[c], {}, key=c)
    for c in params.grid.calibrations:
        choice = data / "calibration_choice" / c
        made("calibration_set", build_calibration_set, choice, samples, data / "sample_features", key=c)
    for c in params.grid.calibrations:
        chosen = data / "calibration_set" / c
        made("activation_stats", build_activation_stats, params.statistics, params.model, chosen, key=c, last=(root,))
    for pair, (c, s) in params.pairs().items():
        inputs = (data / "activation_stats" / c, data / "calibration_set" / c)
        made(
            "quantized_model",
            build_quantized_model,
            s,
            params.schemes[s],
            params.model,
            *inputs,
            key=pair,
            last=(root,),
        )
    for pair in params.pairs():
        inputs = (data / "quantized_model" / pair, samples)
        made("evaluation", build_evaluation, params.evaluation, params.model, *inputs, key=pair, last=(root,))
    grid = {"calibrations": list(params.grid.calibrations), "schemes": list(params.grid.schemes)}
    evaluations = {pair: data / "evaluation" / pair for pair in params.pairs()}
    sets = {c: data / "calibration_set" / c for c in params.grid.calibrations}
    made("calibration_report", build_calibration_report, params.report, grid, evaluations, sets)
    Path("seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
