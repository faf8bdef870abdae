"""The Dagster definition of `production_drift`: an observation of live data, and therefore not a DVC stage."""

from datetime import timedelta

import dagster as dg

from assets.deployed_model import deployed_model
from plumbline.graph.pool import HEAVY
from plumbline.graph.resources import BASE_MODEL, DVC, MLFLOW
from plumbline.graph.step import OWNERS, as_metadata, reported
from plumbline.markdown import literal

CHECK = "production_has_not_drifted"


@dg.asset(
    group_name="5_live",
    kinds={"numpy"},
    owners=OWNERS,
    required_resource_keys={BASE_MODEL, DVC, MLFLOW},
    pool=HEAVY,
    deps=[deployed_model],
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=30), warn_window=timedelta(days=14)),
    check_specs=[
        dg.AssetCheckSpec(
            CHECK,
            asset="production_drift",
            description="No representativeness metric has left the range of random draws since the champion's "
            "calibration set was chosen, and random draws are as close to production as they were then. A "
            "failure starts a re-calibration, and says whether the corpus lacks such texts.",
        )
    ],
    description="Distance of current production texts (`corpus.production`) from the champion's calibration texts, "
    "compared with the distance at calibration. Measured when new production texts arrive; if it exceeds the limits "
    "under `drift:` in params.yaml, a sensor starts a re-calibration.",
)
def production_drift(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    from plumbline.graph.drift import measure

    with reported(context, "production_drift"):
        drift = measure()
    check = dg.AssetCheckResult(
        check_name=CHECK,
        passed=not drift["drifted"],
        severity=dg.AssetCheckSeverity.WARN,
        description=literal(drift["sentence"]),
        metadata={"metrics": dg.MetadataValue.json(drift["metrics"])},
    )
    shown = {key: drift[key] for key in ("sentence", "drifted", "p_value", "production_samples", "champion")}
    return dg.MaterializeResult(metadata=as_metadata(shown), check_results=[check])
