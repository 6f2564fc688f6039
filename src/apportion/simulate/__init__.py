"""World two, virtual time: the same policies against modelled endpoints on a simulated clock."""
