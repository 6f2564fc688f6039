"""Checks of complete answers, made after they were sent; each scores in [0, 1], or None where it does not apply."""
