"""Servers in processes and environments of their own, and load from outside."""  # noqa: A005 - imported by its whole name
