"""Idempotent operations over any store: the port, the decorator, how payloads are compared."""

from forze.application.integrations.idempotency.function import idempotent
from forze.application.integrations.idempotency.function import payload_hash_of as payload_hash
from forze.application.integrations.idempotency.port import StoredIdempotency

__all__ = ["StoredIdempotency", "idempotent", "payload_hash"]
