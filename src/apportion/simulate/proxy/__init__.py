"""The proxy in virtual time: the steps of `serve`, in the same order, with the same parts of `core`."""
