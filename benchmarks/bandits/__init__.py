"""Regret, budgets and thresholds: what the bandit routers and the admission policies do against what is possible."""
