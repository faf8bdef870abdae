"""The plumbing: Dagster, DVC, MLflow, provenance and the command line around the packages of `assets`."""
