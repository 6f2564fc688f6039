"""What keeping exact, durable books costs, against the least that the same stores could be asked to do."""
