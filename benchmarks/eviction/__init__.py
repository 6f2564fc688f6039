"""Evictions on real traces: miss ratios against the best possible and the strongest libraries, and their time."""
