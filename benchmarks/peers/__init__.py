"""Plumbline side by side with other quantizers: `python -m benchmarks.peers`."""
