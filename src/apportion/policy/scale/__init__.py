"""How much of the hardware each kind of work is given, and when that changes."""
