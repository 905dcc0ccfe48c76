"""Peers side by side: the same loop, the same values, the same decode, in one run."""
