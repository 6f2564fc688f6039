"""Guards against over-generation: what is stopped, what is left alone."""
