"""One file per idea: its spec and its port together, no behaviour."""
