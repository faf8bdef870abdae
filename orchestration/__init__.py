"""The Dagster code location: definitions, checks, jobs, sensors."""
