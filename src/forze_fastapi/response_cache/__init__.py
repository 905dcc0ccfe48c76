"""Responses kept by what they depend on: the decorator, and invalidation by tags."""

from forze_fastapi.response_cache.feature import cached_response

__all__ = ["cached_response"]
