"""How near fitted workloads come to published traces, how fast they are generated, how punctually they are sent.

Reads ``$APPORTION_DATA`` (default ``../shared/data``), writes ``benchmarks/results/workloads.json`` and the page of
results.
"""
