"""Prompts and answers on different machines, or on different shares of one: the phases of generation apart."""
