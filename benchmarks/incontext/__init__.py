"""Examples for a small model (IC-Cache): what they bring against always asking the large one.

    python -m benchmarks.incontext [--answers DIRECTORY] [--page]

Reads ``$APPORTION_DATA`` (default ``../shared/data``), asks SmolLM2-135M on this machine and keeps what it said in
DIRECTORY, writes ``benchmarks/results/incontext.json`` and ``docs/results/incontext.md`` with its figures.
"""
