"""Streams moved between two llama.cpp servers: what a move loses (nothing) and how long the client waits."""
