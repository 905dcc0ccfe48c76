"""Celery workers with forze in them."""
