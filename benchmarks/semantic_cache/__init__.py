"""Answers found by meaning: how many are found when hardly any is wrong.

    python -m benchmarks.semantic_cache [--quick]

Reads ``$APPORTION_DATA`` (default ``../shared/data``), writes ``benchmarks/results/semantic_cache.json`` and
``docs/results/semantic_cache.md`` with its figures.
"""
