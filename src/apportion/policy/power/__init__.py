"""How fast machines may run, so that together they draw no more than they may."""
