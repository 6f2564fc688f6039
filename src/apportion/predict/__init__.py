"""Numbers not known yet: length, latency, quality, difficulty. Each family is a folder."""
