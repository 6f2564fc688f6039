"""The ledger: what was spent, exactly once, and what may still be, under any number of workers and crashes.

``purse`` holds what a worker may spend without asking, ``journal`` what it has promised and not yet written
down, ``bank`` is whoever lends to the purses, ``database`` is the record.
"""
