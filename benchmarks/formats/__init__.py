"""Every number format under every solver: `python -m benchmarks.formats`."""
