"""How near off-policy estimates come to the truth, on routing data where every model's answer is known."""
