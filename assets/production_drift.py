"""The Dagster definition of `production_drift`: an observation of live data, so it is no stage of DVC."""

import dagster as dg

from assets.deployed_model import deployed_model
from plumbline.graph.step import OWNERS, as_metadata

CHECK = "production_is_what_the_champion_was_calibrated_on"


@dg.asset(
    group_name="5_live",
    kinds={"numpy"},
    owners=OWNERS,
    deps=[deployed_model],
    check_specs=[
        dg.AssetCheckSpec(
            CHECK,
            asset="production_drift",
            description="No metric of representativeness has left the range of random draws since the champion's "
            "calibration set was chosen, and random draws come as near to production as they did. What fails "
            "starts a run that calibrates anew, and says whether the corpus lacks such texts.",
        )
    ],
    description="How far today's production texts (`corpus.production`) are from the texts that the champion was "
    "calibrated on, beside how far they were when it was calibrated. Measured when new production texts come in; past "
    "the limits under `drift:` in params.yaml a sensor starts a re-calibration.",
)
def production_drift() -> dg.MaterializeResult:
    from plumbline.graph.drift import measure

    found = measure()
    check = dg.AssetCheckResult(
        check_name=CHECK,
        passed=not found["drifted"],
        severity=dg.AssetCheckSeverity.WARN,
        description=found["sentence"],
        metadata={"metrics": dg.MetadataValue.json(found["metrics"])},
    )
    shown = {key: found[key] for key in ("drifted", "sentence", "p_value", "production_samples", "champion")}
    return dg.MaterializeResult(metadata=as_metadata(shown), check_results=[check])
