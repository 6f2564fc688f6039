"""Requests, from the dialect of the client to that of the upstream: one file a pair."""
