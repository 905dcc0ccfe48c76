"""Stores of the in-process tier: what they promise, and two of them."""
