"""Asking for the right to run: once more where the reply was lost, and waiting for another's
answer where the spec says so."""

from __future__ import annotations

import time

from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.contracts.tenancy import current_deadline
from forze.application.integrations.idempotency.claims import Claim
from forze.application.integrations.idempotency.record import Answer, Busy
from forze.application.integrations.idempotency.store import IdempotencyStore
from forze.errors import BackendTimeout, BackendUnavailable

AWAY = (BackendTimeout, BackendUnavailable)
"""How a store that is away answers."""

_ASK_AGAIN_WITHIN_SECONDS = 1.0
"""A lost reply is asked for again, unless losing it took this long: then the store is away."""


async def ask(store: IdempotencyStore, claim: Claim, spec: IdempotencySpec) -> Answer:
    """The store's answer; ``Busy`` where another still runs it when the wait has ended."""
    answer = await _ask(store, claim, spec)
    until = _patience(spec)
    if not isinstance(answer, Busy) or until <= time.monotonic():
        return answer
    async with store.watch(claim.name) as changes:
        answer = await _ask(store, claim, spec)
        while isinstance(answer, Busy) and (left := until - time.monotonic()) > 0:
            await changes.wait(min(left, answer.lease_left_ms / 1000 + 0.001))
            if time.monotonic() < until:
                answer = await _ask(store, claim, spec)
    return answer


def _patience(spec: IdempotencySpec) -> float:
    """Until when to wait, on the monotonic clock."""
    if spec.wait is None:
        return 0.0
    until = time.monotonic() + spec.wait.total_seconds()
    deadline = current_deadline()
    return until if deadline is None else min(until, deadline)


async def _ask(store: IdempotencyStore, claim: Claim, spec: IdempotencySpec) -> Answer:
    """One attempt gets one answer, however often it asks."""
    question = claim.name, claim.owner, claim.payload_hash, spec.lease, spec.pending_ttl
    asked = time.monotonic()
    try:
        return await store.claim(*question)
    except AWAY as error:
        if error.outcome != "unknown":
            raise
        claim.doubtful = True
        if time.monotonic() - asked > _ASK_AGAIN_WITHIN_SECONDS:
            raise
    return await store.claim(*question)
