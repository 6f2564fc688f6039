"""How fast the simulator is, and SplitFuse against prompts first."""
