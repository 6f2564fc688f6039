"""Programs for working on apportion itself; not installed with it."""
