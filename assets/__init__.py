"""One Dagster asset per file."""
