"""Answers kept for the next who asks the same: exactly, or in other words."""
