"""Many machines: power that is oversubscribed, requests that move."""
