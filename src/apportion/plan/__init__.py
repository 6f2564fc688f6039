"""Before the fact: which machines, how many, and what goes where."""
