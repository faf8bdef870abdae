"""The sensors: inbox, hub, drift, DVC, dead runs, alerts, and automation of downstream assets."""

from __future__ import annotations

import dagster as dg

from assets.deployed_model import deployed_model
from assets.production_drift import CHECK, production_drift
from orchestration.jobs import INGEST, MEASURE_DRIFT
from plumbline.deployed_model.check_specs import GATES
from plumbline.graph import alert_tick, sensor_ticks

RUNNING = dg.DefaultSensorStatus.RUNNING


@dg.sensor(
    job=INGEST,
    minimum_interval_seconds=5,
    default_status=RUNNING,
    description="Launches one run for new, changed or deleted files in the inbox. A file that is still being written "
    "waits without blocking others; content that is in the corpus already, under any name, launches none.",
)
def inbox_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    return sensor_ticks.inbox_tick(context.instance)


@dg.sensor(
    job=INGEST,
    minimum_interval_seconds=3600,
    default_status=RUNNING,
    description="Launches a run for a new revision of a Hugging Face dataset that `corpus` follows (`follow: main`).",
)
def hub_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    return sensor_ticks.hub_tick(context.instance)


@dg.sensor(
    jobs=[MEASURE_DRIFT, INGEST],
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Compares new production texts with the champion's calibration set. If the drift exceeds the limits, "
    "launches a re-calibration, whose tags give the reason.",
)
def drift_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    return sensor_ticks.drift_tick(context, measure=MEASURE_DRIFT.name, recalibrate=INGEST.name)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Reports to Dagster what `dvc repro`, `dvc checkout` or `dvc pull` changed.",
)
def dvc_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    return sensor_ticks.dvc_tick(context)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Marks runs whose process was killed as failed, so that they do not block the queue.",
)
def dead_run_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    return sensor_ticks.dead_run_tick(context)


ALERTED = [
    *(dg.AssetCheckKey(deployed_model.key, gate) for gate in GATES),
    dg.AssetCheckKey(production_drift.key, CHECK),
]
"""The checks whose failure somebody is told of."""


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Tells a webhook or e-mail address of a failed promotion gate, of drift, and of failed runs. The "
    "settings are in the environment or the file .env: PLUMBLINE_ALERT_WEBHOOK; PLUMBLINE_ALERT_EMAIL and "
    "PLUMBLINE_ALERT_SMTP.",
)
def alert_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    return alert_tick.alert_tick(context, ALERTED)


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=RUNNING,
    minimum_interval_seconds=15,
    description="Runs downstream assets when the content of a dependency has changed.",
)

SENSORS = [inbox_sensor, hub_sensor, drift_sensor, dvc_sensor, dead_run_sensor, alert_sensor, automation]
