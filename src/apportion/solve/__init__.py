"""Pure mathematics: indices, prices, thresholds."""
