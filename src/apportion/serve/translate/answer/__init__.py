"""Answers, whole or streamed, from the dialect of the upstream to that of the client: one file a pair."""
