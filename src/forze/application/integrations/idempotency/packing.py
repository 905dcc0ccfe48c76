"""An answer as a store keeps it: its status, a head in JSON, and its body as it is."""

from __future__ import annotations

import json
from typing import Any

from forze.application.contracts.idempotency import IdempotencySnapshot
from forze.errors import BackendCorrupt, ValidationError


def head_of(snapshot: IdempotencySnapshot) -> str:
    """Content type and headers, as JSON."""
    return json.dumps({"content_type": snapshot.content_type, "headers": snapshot.headers})


def snapshot_of(
    status_code: Any, head: Any, body: Any, *, record: str, backend: str
) -> IdempotencySnapshot:
    """The answer that was stored; raises ``BackendCorrupt`` where ``record`` holds none."""
    try:
        parsed = json.loads(head)
        headers = tuple((each[0], each[1]) for each in parsed["headers"])
        return IdempotencySnapshot(int(status_code), parsed["content_type"], body, headers)
    except (TypeError, ValueError, LookupError, ValidationError) as error:
        raise BackendCorrupt(
            f"the idempotency record {record!r} holds no answer that can be read; somebody else "
            "writes there too: give the resource a place of its own, or remove the record",
            backend=backend,
        ) from error
