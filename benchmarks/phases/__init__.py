"""Splitwise, DistServe and semi-PD against machines that mix the phases."""
