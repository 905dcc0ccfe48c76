"""The cache's side of a write: intent before COMMIT, done after it, whatever happens between.

::

    announce ──answered──► COMMIT (only while the deadline is ahead) ──► done ──► acknowledged
        │  renewed every third of the deadline                            │
        └─ cache away: "proceed" journals the keys, "refuse" raises       └─ likewise

A write outside a transaction is one :class:`Invalidation` around one statement; inside, one
:class:`Invalidation` takes part in the transaction for all its writes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from secrets import token_hex
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from uuid import UUID

from forze.application.contracts.cache import PointerCache
from forze.application.contracts.deps import Resolver, sheltered
from forze.application.contracts.tenancy import bind_again, current_tenant
from forze.application.contracts.transaction import Outcome, Transaction
from forze.application.integrations.document.outage import BATCH, Journals
from forze.application.integrations.document.protocol import INTENT_MS, may_commit
from forze.application.integrations.document.stats import CacheCounters
from forze.errors import BackendError, BackendTimeout, BackendUnavailable, ForzeError

if TYPE_CHECKING:
    from forze.application.integrations.document.spans import Spans

T = TypeVar("T")

RENEW_SECONDS = INTENT_MS / 3000
ASK_SECONDS = 0.5
"""How often a server is asked whether it still runs a write whose answer was lost."""


def suspended_clock() -> float:
    """Seconds on a clock that goes on while the machine sleeps, as the server's does."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Outlet:
    """One cache that a write has to tell, with its journal and counters."""

    __slots__ = ("by_namespace", "counters", "journal", "pointers", "spans")

    def __init__(
        self,
        pointers: PointerCache,
        journal: Journals,
        counters: CacheCounters,
        *,
        by_namespace: bool = False,
    ) -> None:
        self.pointers = pointers
        self.journal = journal
        self.counters = counters
        self.by_namespace = by_namespace
        """Whether the ids written do not tell which entries change: everything is dropped."""
        self.spans: Spans | None = None

    def available(self, addresses: Sequence[str]) -> bool:
        """Whether every server that holds one of these can be told of something."""
        return all(map(self.pointers.available, addresses))

    def dropping_all(self) -> Outlet:
        """The same cache, told to drop everything instead of single documents."""
        outlet = Outlet(self.pointers, self.journal, self.counters, by_namespace=True)
        outlet.spans = self.spans
        return outlet


class _Announced:
    """What one cache was told of this write, and since when it counts."""

    __slots__ = ("addresses", "failed", "intended_at")

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.failed = False
        self.intended_at: float | None = None

    def commits(self, now: float) -> bool:
        """Whether it lets COMMIT be sent now."""
        if self.failed or not self.addresses:
            return True
        return self.intended_at is not None and may_commit(self.intended_at, now)


class _Sent(NamedTuple):
    """An announcement under way."""

    reply: asyncio.Future[None]
    outlet: Outlet
    keys: int
    at: float


class _Written(NamedTuple):
    """Documents written: who was to be told, who was told, of what, for which tenant."""

    outlets: Callable[[], Sequence[Outlet]]
    told: Sequence[Outlet]
    ids: Sequence[UUID]
    tenant: str | None


class Invalidation:
    """A write's intents, from the announcement to the end. A ``TransactionParticipant``."""

    def __init__(self, resolver: Resolver, *, clock: Callable[[], float] = suspended_clock) -> None:
        self._resolver = resolver
        self._clock = clock
        self._id = token_hex(8)
        self._told: dict[Outlet, _Announced] = {}
        self._sent: deque[_Sent] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._namespaces: dict[tuple[Journals, str], Outlet] = {}
        self._written: list[_Written] = []
        self._ended = False
        self._withdrawn = False
        self._after_commit: list[Callable[[], Awaitable[object]]] = []

    @classmethod
    def of(cls, transaction: Transaction, resolver: Resolver) -> Invalidation:
        """The one that takes part in ``transaction``."""
        participant = transaction.participants.get(cls)
        if participant is None:
            participant = transaction.participants[cls] = cls(resolver)
        assert isinstance(participant, cls)
        return participant

    # -- before the commit ---------------------------------------------------

    def write(
        self,
        outlets: Callable[[], Sequence[Outlet]],
        ids: Sequence[UUID],
        told: Sequence[Outlet] | None = None,
    ) -> None:
        """Announce documents to every outlet (``told``: those that there are), and to those that
        come before the commit."""
        told = outlets() if told is None else told
        self._written.append(_Written(outlets, told, ids, current_tenant()))
        self._announce_to(told, ids)

    def _announce_to(self, outlets: Sequence[Outlet], ids: Sequence[UUID]) -> None:
        for outlet in outlets:
            if outlet.by_namespace:
                self.clear_after(outlet)
            else:
                self.announce(outlet, [outlet.pointers.address(str(each)) for each in ids])

    def announce(self, outlet: Outlet, addresses: Sequence[str]) -> None:
        """Send intents now; they are awaited in :meth:`before_commit`."""
        told = self._told.setdefault(outlet, _Announced())
        known = set(told.addresses)
        new = [each for each in dict.fromkeys(addresses) if each not in known]
        told.addresses += new
        now = self._clock()
        for batch in _batches(new):
            reply = asyncio.ensure_future(outlet.pointers.intend(batch, self._id))
            self._sent.append(_Sent(reply, outlet, len(batch), now))
        if self._timer is None:
            self._arm()

    def clear_after(self, outlet: Outlet) -> None:
        """Drop the outlet's whole namespace after the commit, instead of single keys."""
        self._namespaces[outlet.journal, outlet.pointers.namespace()] = outlet

    def then(self, work: Callable[[], Awaitable[object]]) -> None:
        """Run ``work`` after the commit, before it is acknowledged; not after a rollback."""
        self._after_commit.append(work)

    async def before_commit(self) -> None:
        """Wait until every intent is answered and none is old; raises to refuse the commit."""
        for outlets, told, ids, tenant in self._written:
            if (now_known := outlets()) is not told:
                with bind_again(tenant):
                    self._announce_to(now_known, ids)
        while self._sent:
            await self._answered(self._sent[0])
            self._sent.popleft()
        if self._renewals_due():
            await self._renew()
        for outlet, announced in self._told.items():
            if announced.failed and outlet.pointers.on_outage == "refuse":
                raise BackendUnavailable(
                    "the write was not committed: the cache cannot be told of it and is "
                    'configured with on_outage="refuse"; retry when it answers again, or '
                    'choose "proceed"',
                    backend="cache",
                )

    def withdraw(self) -> None:
        """The caller is gone: without effect once the commit was sent, else it is refused."""
        self._withdrawn = True
        if self._sent:
            self._sent[0].reply.cancel()

    def check_commit(self) -> None:
        """Refuse a COMMIT that would leave with an intent close to its deadline."""
        if self._withdrawn:
            raise asyncio.CancelledError
        now = self._clock()
        for told in self._told.values():
            if not told.commits(now):
                raise BackendTimeout(
                    "the write was not committed: its announcement to the cache is too old, "
                    "because this process stalled or the cache did not answer; retry",
                    backend="cache",
                )

    async def _answered(self, sent: _Sent) -> None:
        outlet, told = sent.outlet, self._told[sent.outlet]
        try:
            await sent.reply
        except BackendError:
            outlet.counters.intent_failures += 1
            told.failed = True
            if outlet.pointers.on_outage == "proceed":
                outlet.journal.owe(told.addresses, self._id)
        else:
            outlet.counters.intents += sent.keys
            told.intended_at = min(told.intended_at or sent.at, sent.at)

    def _renewals_due(self) -> bool:
        """Whether what counts (was answered, is not given up) was sent too long ago."""
        due = self._clock() - RENEW_SECONDS
        for told in self._told.values():
            if told.intended_at is not None and told.intended_at < due and not told.failed:
                return True
        return False

    async def _renew(self) -> None:
        """Prolong every intent; counts from its sending, and only if all were answered."""
        for outlet, told in tuple(self._told.items()):
            if told.failed or not told.addresses or self._ended:
                continue
            sent = self._clock()
            try:
                await _each(outlet.pointers.intend, told.addresses, self._id)
            except ForzeError:
                outlet.counters.lapsed_intents += not told.commits(self._clock())
                if not outlet.available(told.addresses):
                    told.failed = True
                    outlet.journal.owe(told.addresses, self._id)
            else:
                told.intended_at = sent

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(RENEW_SECONDS, self._tick)

    def _tick(self) -> None:
        self._resolver.spawn(self._renew(), name="forze-intent-renewal")
        self._arm()

    # -- after it ------------------------------------------------------------

    async def after(self, outcome: Outcome, error: BackendError | None) -> None:
        """End the write: done for a known outcome; for an unknown one, once it is settled."""
        for sent in self._sent:
            sent.reply.add_done_callback(_unheard)
        if outcome is Outcome.UNKNOWN and error is not None:
            self._resolver.spawn(self._settle(error), name="forze-unknown-write")
            return
        self._disarm()
        if outcome is Outcome.UNKNOWN:
            return  # cut off at shutdown: nobody is left to ask, the intents lapse by themselves
        await self._done(committed=outcome is Outcome.COMMITTED)

    async def _settle(self, error: BackendError) -> None:
        """Keep the intents alive while the server may still commit, then end the write."""
        running = error.still_running
        try:
            if running is None:
                await asyncio.sleep(INTENT_MS / 1000)
            else:
                while await running():  # noqa: ASYNC110 - a server is asked, nobody notifies
                    await asyncio.sleep(ASK_SECONDS)
        finally:
            self._disarm()
        await self._done(committed=True, acknowledge=False)

    async def _done(self, *, committed: bool, acknowledge: bool = True) -> None:
        lost = await self._end_all(committed=committed)
        for work in self._after_commit if committed else ():
            with suppress(ForzeError):
                await work()
        for (_, namespace), outlet in self._namespaces.items() if committed else ():
            if not await _traced(outlet, 0, _clear(outlet, namespace)):
                lost.append(outlet)
        if acknowledge and any(outlet.pointers.on_outage == "refuse" for outlet in lost):
            raise BackendUnavailable(
                "the write is committed, but the cache could not be told of it: other "
                "processes may serve the old value until its TTL; do not repeat the write",
                backend="cache",
                committed=True,
            )

    async def _end_all(self, *, committed: bool) -> list[Outlet]:
        """Tell every cache that the write is over, together; those that do not know."""
        telling = [
            (
                outlet,
                _traced(
                    outlet,
                    len(told.addresses),
                    self._end(outlet, told.addresses, committed=committed),
                ),
            )
            for outlet, told in self._told.items()
            if told.addresses
        ]
        if len(telling) == 1:
            ((outlet, only),) = telling
            return [] if await only else [outlet]
        knows = await asyncio.gather(*(each for _, each in telling))
        return [outlet for (outlet, _), told in zip(telling, knows, strict=True) if not told]

    async def _end(self, outlet: Outlet, addresses: Sequence[str], *, committed: bool) -> bool:
        """Tell one cache that the write is over; whether it (or nobody) had to know."""
        tries = 2 if outlet.pointers.on_outage == "refuse" else 1
        for _ in range(tries):
            mark = outlet.journal.now()
            try:
                await _each(outlet.pointers.done, addresses, self._id)
            except ForzeError:
                continue
            outlet.journal.settled(addresses, mark, self._id)
            return True
        if committed:
            outlet.journal.owe(addresses, self._id)
        return not committed

    def _disarm(self) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _clear(outlet: Outlet, namespace: str) -> bool:
    """Drop everything of a namespace; whether the cache knows of it."""
    try:
        await outlet.pointers.clear(namespace)
    except ForzeError:
        outlet.journal.owe_namespace(namespace)
        return False
    return True


def _traced(outlet: Outlet, keys: int, telling: Awaitable[bool]) -> Awaitable[bool]:
    """The end of a write at one cache, in a span where somebody traces."""
    spans = outlet.spans
    return telling if spans is None or spans.unheard else spans.invalidate(keys, telling)


def _batches(addresses: Sequence[str]) -> Iterable[Sequence[str]]:
    return (addresses[start : start + BATCH] for start in range(0, len(addresses), BATCH))


def _each(
    tell: Callable[[Sequence[str], str], Awaitable[None]], addresses: Sequence[str], write_id: str
) -> Awaitable[object]:
    """Tell of every address, in batches sent together."""
    if len(addresses) <= BATCH:
        return tell(addresses, write_id)
    return asyncio.gather(*(tell(batch, write_id) for batch in _batches(addresses)))


def _unheard(reply: asyncio.Future[None]) -> None:
    """Nobody waits for this answer any more: the write was given up before it came."""
    if not reply.cancelled():
        reply.exception()


_ENDED = {
    "none": Outcome.ROLLED_BACK,
    "committed": Outcome.COMMITTED,
    "unknown": Outcome.UNKNOWN,
}


async def write_through(
    resolver: Resolver,
    outlets: Callable[[], Sequence[Outlet]],
    ids: Sequence[UUID],
    statement: Callable[[], Awaitable[T]],
) -> T:
    """Run one statement that commits by itself, announced before and done after.

    From the statement on it is sheltered: a cancelled caller leaves nothing half done.
    """
    told = outlets() if ids else ()
    if not told:
        return await statement()
    write = Invalidation(resolver)
    try:
        write.write(outlets, ids, told)
    except BaseException:
        _abandon(resolver, write)
        raise
    # The task begins while the announcement travels: later, its start would be a turn of the
    # event loop between the cache's answer and the statement.
    work = _around(resolver, write, statement)
    try:
        return await sheltered(resolver, work, name="forze-write", context=copy_context())
    except asyncio.CancelledError:
        write.withdraw()
        raise


async def _around(
    resolver: Resolver, write: Invalidation, statement: Callable[[], Awaitable[T]]
) -> T:
    try:
        await write.before_commit()
        write.check_commit()
    except BaseException:
        _abandon(resolver, write)
        raise
    try:
        result = await statement()
    except BackendError as error:
        await write.after(_ENDED[error.outcome], error)
        raise
    except asyncio.CancelledError:
        await write.after(Outcome.UNKNOWN, None)
        raise
    except BaseException:
        await write.after(Outcome.ROLLED_BACK, None)
        raise
    await write.after(Outcome.COMMITTED, None)
    return result


def _abandon(resolver: Resolver, write: Invalidation) -> None:
    """Take back the announcements of a write whose statement was not sent."""
    resolver.spawn(write.after(Outcome.ROLLED_BACK, None), name="forze-write-abandoned")
