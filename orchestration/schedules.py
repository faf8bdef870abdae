"""The schedules. They are off until somebody switches them on, on the page Automation."""

import dagster as dg

from orchestration.jobs import EVERYTHING, MEASURE_DRIFT

nightly = dg.ScheduleDefinition(
    name="nightly",
    job=EVERYTHING,
    cron_schedule="0 3 * * *",
    description="Brings everything up to date at 03:00 UTC, for teams that do not want models to be made by day. "
    "Switch the sensor `automation` off then, which does so at once.",
)
weekly_drift = dg.ScheduleDefinition(
    name="weekly_drift",
    job=MEASURE_DRIFT,
    cron_schedule="0 6 * * 1",
    description="Measures the drift of production texts on Mondays at 06:00 UTC, whether or not new ones have come.",
)

SCHEDULES = [nightly, weekly_drift]
