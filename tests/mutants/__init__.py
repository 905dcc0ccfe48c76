"""Faults planted on purpose, each with the test that must notice."""
