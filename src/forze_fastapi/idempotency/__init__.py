"""Idempotent routes: the ``Idempotency-Key`` header (draft-ietf-httpapi-idempotency-key-header)."""

from forze_fastapi.idempotency.feature import IdempotencyFeature

__all__ = ["IdempotencyFeature"]
