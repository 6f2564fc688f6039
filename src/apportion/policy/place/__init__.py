"""Which machine computes a prompt, and which one makes the answer."""
