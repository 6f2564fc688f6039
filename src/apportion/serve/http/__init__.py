"""HTTP/1.1 on both sides of the proxy: a strict server, a pooled client, server-sent events."""
