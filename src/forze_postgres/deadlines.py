"""How long to wait: the limits of the config, and the deadline the task is bound to."""

from __future__ import annotations

import asyncio
import time

from forze.application.contracts.tenancy import current_deadline
from forze.errors import BackendTimeout
from forze_postgres.config import PostgresConfig, seconds
from forze_postgres.errors import BACKEND

ANSWER_SECONDS = 1.0
"""How much longer than the server's own limit an answer may take before it counts as lost."""


def loop_deadline(loop: asyncio.AbstractEventLoop) -> float | None:
    """The task's deadline on the loop's clock, None if it has none."""
    deadline = current_deadline()
    return None if deadline is None else loop.time() + deadline - time.monotonic()


def answer_limit(config: PostgresConfig, doing: str) -> float:
    """Seconds to wait for an answer: the server's limit and a little, or the task's deadline.

    Raises ``BackendTimeout`` if that has passed already.
    """
    limit = seconds(config.statement_timeout) + ANSWER_SECONDS
    deadline = current_deadline()
    if deadline is None:
        return limit
    left = deadline - time.monotonic()
    if left <= 0:
        raise BackendTimeout(f"{doing}: the deadline of the call has passed", backend=BACKEND)
    return min(limit, left)
