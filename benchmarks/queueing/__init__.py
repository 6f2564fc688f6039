"""Who goes next: what prediction buys before a serial model, against FCFS and the best possible order."""
