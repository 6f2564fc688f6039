"""How well lengths and latencies are predicted: `python -m benchmarks.length`."""
