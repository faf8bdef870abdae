"""What starts runs by itself: the inbox, new inputs, and what DVC made behind Dagster's back."""

from __future__ import annotations

import dagster as dg

from orchestration.jobs import INGEST, MEASURE_DRIFT
from plumbline.graph import sensor_ticks

RUNNING = dg.DefaultSensorStatus.RUNNING


@dg.sensor(
    job=INGEST,
    minimum_interval_seconds=5,
    default_status=RUNNING,
    description="A new, changed or deleted file in the inbox leads to one run. A file that is still being written "
    "waits, and holds up no other; the same content again, under whatever name, leads to none.",
)
def inbox_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    return sensor_ticks.inbox_tick(context.instance)


@dg.sensor(
    job=INGEST,
    minimum_interval_seconds=3600,
    default_status=RUNNING,
    description="A new revision of a Hugging Face dataset that `corpus` follows (`follow: main`) leads to a run.",
)
def hub_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    return sensor_ticks.hub_tick(context.instance)


@dg.sensor(
    jobs=[MEASURE_DRIFT, INGEST],
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="New production texts are compared with the champion's calibration set; past the limits a run "
    "calibrates anew, and its tags say why.",
)
def drift_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    return sensor_ticks.drift_tick(context, measure=MEASURE_DRIFT.name, recalibrate=INGEST.name)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Tells Dagster what `dvc repro`, `dvc checkout` or `dvc pull` put in place.",
)
def dvc_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    return sensor_ticks.dvc_tick(context)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Marks runs as failed whose process was killed, so that the queue goes on.",
)
def dead_run_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    return sensor_ticks.dead_run_tick(context.instance)


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=RUNNING,
    minimum_interval_seconds=15,
    description="Runs what is downstream of new data, when the content of something it reads has changed.",
)

SENSORS = [inbox_sensor, hub_sensor, drift_sensor, dvc_sensor, dead_run_sensor, automation]
