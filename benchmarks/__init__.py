"""Measurements of apportion against its rivals; run by hand or with `make bench`, never by the tests."""
