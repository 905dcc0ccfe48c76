"""How claims end: with an answer, without one, with their owner, with a transaction.

Whatever must reach the store after its request has gone (the answer, the release) is sent by
a task of its own, again and again until the lease ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from typing import Any

from forze.application.contracts.deps import Resolver
from forze.application.contracts.idempotency import Commit, IdempotencySnapshot, IdempotencySpec
from forze.application.contracts.transaction import Outcome, Transaction, open_transactions
from forze.application.integrations.idempotency.asking import AWAY
from forze.application.integrations.idempotency.claims import Claim, Phase
from forze.application.integrations.idempotency.leases import Leases
from forze.errors import BackendError, FencedOut, ForzeError

_FREEING_SECONDS = 1.0
"""How long the end of a block waits for its key to be free, before that goes on by itself."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0

_AGAIN_SECONDS = (0.1, 0.4, 1.5, 5.0, 12.0)
"""When a key is freed once more of which nobody knows whether it was claimed."""

_log = logging.getLogger("forze")


class Endings:
    """Ends the claims of one port. ``count`` notes an event of ``IdempotencyStats``."""

    def __init__(
        self,
        spec: IdempotencySpec,
        resolver: Resolver,
        leases: Leases,
        count: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._resolver = resolver
        self._leases = leases
        self._count = count

    async def answered(
        self, claim: Claim, snapshot: IdempotencySnapshot, *, stands: bool = False
    ) -> Commit:
        """By its answer; see ``IdempotencyPort.commit`` and ``IdempotencyClaim.complete``."""
        if claim.phase in (Phase.ENLISTED, Phase.WRITTEN):
            return Commit.ENLISTED
        if claim.phase is not Phase.HELD:
            self._leases.end(claim)
            return Commit.UNCLAIMED
        if not stands and not self._spec.stores(snapshot.status_code):
            await self._free(claim)
            return Commit.RELEASED
        snapshot = self._spec.kept(snapshot)
        outer = open_transactions()
        if outer:
            return await self._enlist(claim, snapshot, outer[0])
        return await self._store(claim, snapshot)

    async def failed(self, claim: Claim) -> bool:
        """Without an answer; whether the key was freed."""
        claim.failing = True
        if claim.phase is Phase.HELD:
            return await self._free(claim)
        if claim.phase is Phase.UNPROTECTED:
            self._leases.end(claim)
        return False

    async def closed(self, claims: Iterable[Claim]) -> None:
        """By the end of their block: what is still held is freed, what follows a transaction
        stays."""
        freeing = set()
        for claim in tuple(claims):
            claim.closed = True
            if claim.phase is Phase.HELD:
                freeing.add(self._to_the_end(claim, self._releasing(claim)))
            elif claim.phase is Phase.UNPROTECTED:
                self._leases.end(claim)
        if freeing:
            await asyncio.wait(freeing, timeout=_FREEING_SECONDS)

    def free_apart(self, claim: Claim, *, doubtful: bool = False) -> None:
        """Free what it may have, whatever became of its request.

        ``doubtful``: that may be executed yet, a server that hung has it in a buffer; so where
        nothing was to be freed this is done again, in growing pauses.
        """
        if claim.store is None:
            self._leases.end(claim)
            return
        release = self._releasing(claim)

        async def freed() -> bool:
            done = await release()
            if doubtful and not done:
                self._resolver.spawn(_again(release), name="forze-idempotency-again", wait=False)
            return done

        self._to_the_end(claim, freed)

    def with_owner(self, claim: Claim) -> None:
        """Watch the task it belongs to, where no block ends it."""
        if not claim.bare or claim.task is None:
            return

        def ended(task: asyncio.Task[Any]) -> None:
            if claim.phase is Phase.UNPROTECTED:
                self._leases.end(claim)
            elif claim.phase is Phase.HELD and task.cancelled():
                self.free_apart(claim)
            elif claim.phase is Phase.HELD:
                self._leases.linger(claim)  # crashed, or begun for another task to finish

        claim.watcher = ended
        claim.task.add_done_callback(ended, context=Context())

    # -- transactions --------------------------------------------------------

    async def _enlist(
        self, claim: Claim, snapshot: IdempotencySnapshot, outermost: Transaction
    ) -> Commit:
        assert claim.store is not None
        inside = claim.store.transaction()
        if inside is None:
            claim.phase = Phase.ENLISTED
            outermost.participants[claim] = _Following(self, claim, snapshot)
            return Commit.ENLISTED
        if not await self._completing(claim, snapshot)():
            self._leases.forget(claim)
            raise FencedOut(resource=claim.operation, id=claim.key, token=claim.generation)
        claim.phase = Phase.WRITTEN
        self._leases.stop(claim)
        inside.participants[claim] = _Following(self, claim, None)
        return Commit.ENLISTED

    async def with_transaction(
        self, claim: Claim, snapshot: IdempotencySnapshot | None, outcome: Outcome
    ) -> None:
        """As the transaction it was enlisted in; ``snapshot`` None: it was written there."""
        if outcome is Outcome.COMMITTED and snapshot is not None:
            await self._store(claim, snapshot)
        elif outcome is not Outcome.ROLLED_BACK:
            # Unknown, it may stand: freeing the key could run it twice. The lease decides.
            self._leases.forget(claim)
        elif claim.failing or claim.closed or claim.abandoned:
            await self._free(claim)
        else:
            claim.phase = Phase.HELD
            self._leases.keep_up(claim)

    # -- the last word to the store ------------------------------------------

    async def _store(self, claim: Claim, snapshot: IdempotencySnapshot) -> Commit:
        stored = await self._to_the_end(claim, self._completing(claim, snapshot))
        if stored is None:
            self._count("deferred")
            return Commit.DEFERRED
        return Commit.STORED if stored else Commit.FENCED_OUT

    async def _free(self, claim: Claim) -> bool:
        return bool(await self._to_the_end(claim, self._releasing(claim)))

    def _completing(
        self, claim: Claim, snapshot: IdempotencySnapshot
    ) -> Callable[[], Awaitable[bool]]:
        store, ttl = claim.store, self._spec.ttl
        assert store is not None

        async def complete() -> bool:
            stored = await store.complete(claim.name, claim.owner, claim.generation, snapshot, ttl)
            if not stored:
                claim.lost = True
                self._count("fenced_out")
                _log.warning(
                    "idempotency %r: %s finished under key %r after its lease had lapsed and "
                    "another had taken over; its answer was not stored",
                    self._spec.name,
                    claim.operation,
                    claim.key,
                )
            return stored

        return complete

    def _releasing(self, claim: Claim) -> Callable[[], Awaitable[bool]]:
        store, ttl = claim.store, self._spec.ttl
        assert store is not None
        return lambda: store.release(claim.name, claim.owner, claim.generation, ttl)

    def _to_the_end(
        self, claim: Claim, step: Callable[[], Awaitable[bool]]
    ) -> asyncio.Future[bool | None]:
        """End the claim by ``step``, which goes on whatever becomes of the caller.

        The future has its result, or None as soon as it turns out that the store is away.
        """
        self._leases.end(claim)
        first: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._resolver.spawn(self._persist(claim, step, first), name="forze-idempotency-end")
        return first

    async def _persist(
        self,
        claim: Claim,
        step: Callable[[], Awaitable[bool]],
        first: asyncio.Future[bool | None],
    ) -> None:
        until = time.monotonic() + self._spec.lease.total_seconds()
        pause = _FIRST_PAUSE_SECONDS
        try:
            while True:
                try:
                    return _tell(first, await step())
                except ForzeError as error:
                    _tell(first, None)
                    if not isinstance(error, AWAY) or time.monotonic() + pause >= until:
                        _log.warning(
                            "idempotency %r: the end of %s under key %r could not be written: %s",
                            self._spec.name,
                            claim.operation,
                            claim.key,
                            error,
                        )
                        return None
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        finally:
            _tell(first, None)
            await claim.leave()


class _Following:
    """A claim whose answer follows a transaction. Implements ``TransactionParticipant``."""

    def __init__(
        self, endings: Endings, claim: Claim, snapshot: IdempotencySnapshot | None
    ) -> None:
        self._endings, self._claim, self._snapshot = endings, claim, snapshot

    async def before_commit(self) -> None:
        """Nothing is left to do."""

    def check_commit(self) -> None:
        """Nothing stands against it."""

    async def after(self, outcome: Outcome, error: BackendError | None) -> None:
        """Store the answer, or go on holding the key."""
        await self._endings.with_transaction(self._claim, self._snapshot, outcome)


async def _again(release: Callable[[], Awaitable[bool]]) -> None:
    for pause in _AGAIN_SECONDS:
        await asyncio.sleep(pause)
        with contextlib.suppress(ForzeError):
            if await release():
                return


def _tell(first: asyncio.Future[bool | None], result: bool | None) -> None:
    if not first.done():
        first.set_result(result)
