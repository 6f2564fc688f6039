"""Requests and answers that take far more than they are worth."""
