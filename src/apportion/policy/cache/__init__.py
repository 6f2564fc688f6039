"""What stays in a cache."""
