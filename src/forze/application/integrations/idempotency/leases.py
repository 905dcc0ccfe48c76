"""Leases kept up while their owners work: a timer for each open claim, a heartbeat when it rings.

A request that is done within a third of its lease costs nothing but the timer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context

from forze.application.contracts.deps import Resolver
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.integrations.idempotency.claims import Claim, Claims, Phase
from forze.errors import BackendError, ForzeError

_log = logging.getLogger("forze")


class Leases:
    """The leases of one port's open claims, which are in ``claims``."""

    def __init__(self, spec: IdempotencySpec, resolver: Resolver) -> None:
        self.claims = Claims()
        self._spec = spec
        self._resolver = resolver

    def keep_up(self, claim: Claim) -> None:
        """Keep it the owner's from now on."""
        self._later(claim, self._spec.lease.total_seconds() / 3, self._due)

    def linger(self, claim: Claim) -> None:
        """Keep it up no more; whoever finds it within its lease may still end it."""
        self._later(claim, self._spec.lease.total_seconds(), self.forget)

    def stop(self, claim: Claim) -> None:
        """Keep it up no more."""
        if claim.timer is not None:
            claim.timer.cancel()
            claim.timer = None

    def end(self, claim: Claim) -> None:
        """It is nobody's any more in this process."""
        claim.phase = Phase.ENDED
        self.stop(claim)
        self.claims.remove(claim)
        if claim.watcher is not None and claim.task is not None:
            claim.task.remove_done_callback(claim.watcher)
            claim.watcher = None

    def forget(self, claim: Claim) -> None:
        """Leave it to its lease, or to what was written."""
        self.end(claim)
        self._resolver.spawn(claim.leave(), name="forze-idempotency-leave")

    def _later(self, claim: Claim, seconds: float, call: Callable[[Claim], None]) -> None:
        self.stop(claim)
        loop = asyncio.get_running_loop()
        claim.timer = loop.call_later(seconds, call, claim, context=Context())

    def _due(self, claim: Claim) -> None:
        if time.monotonic() - claim.began < self._spec.max_hold.total_seconds():
            self.keep_up(claim)
            self._resolver.spawn(self._beat(claim), name="forze-idempotency-beat", wait=False)
            return
        _log.warning(
            "idempotency %r: %s held its key %r for max_hold (%s) without an answer; the lease is "
            "no longer kept up",
            self._spec.name,
            claim.operation,
            claim.key,
            self._spec.max_hold,
        )
        if claim.bare and claim.phase is Phase.HELD:
            self.linger(claim)
        else:
            self.stop(claim)

    async def _beat(self, claim: Claim) -> None:
        spec, store = self._spec, claim.store
        assert store is not None
        sent = time.monotonic()
        try:
            held = await store.beat(
                claim.name, claim.owner, claim.generation, spec.lease, spec.pending_ttl
            )
        except ForzeError as error:
            _log.debug("idempotency %r: a lease was not kept up: %s", spec.name, error)
            if not isinstance(error, BackendError):
                self._give_up(claim)  # the client was closed, or may not: nor will it later
            return
        if held:
            claim.kept_at = sent
        if held or claim.phase not in (Phase.HELD, Phase.ENLISTED):
            return
        claim.lost = True
        self._give_up(claim)
        _log.warning(
            "idempotency %r: the claim of %s on key %r lapsed and is another's by now",
            spec.name,
            claim.operation,
            claim.key,
        )

    def _give_up(self, claim: Claim) -> None:
        if not claim.abandoned:  # then it lingers, and has a timer for its end
            self.stop(claim)
