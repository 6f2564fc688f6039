"""Many calls, one answer."""
