"""Our engine beside Vidur's simulator: the same law of the same machine, the same trace, the same scheduler."""
