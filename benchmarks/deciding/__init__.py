"""What deciding costs: the time a request spends in the proxy, with more and more decided for it."""
