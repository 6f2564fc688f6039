"""Tests from the outside: a real process, real sockets, a scripted upstream with its own meter."""
