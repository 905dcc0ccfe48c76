"""Watching single documents: what became of each of their reads, and why.

Nobody watching costs nothing: a coordinator then has no :class:`Watch`, and the tier's ``find``
is the store's own. While one document is watched, reads of its whole kind go through here, and
one of the document itself asks the cache first what it has, in the same round trip. A watch
that nobody renews ends by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Mapping
from contextvars import Context
from enum import StrEnum
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

from forze.application.contracts.cache import Entry, Miss
from forze.application.contracts.transaction import in_transaction
from forze.application.integrations.document.flight import Flight
from forze.application.integrations.document.l1.tier import Key, Tier
from forze.errors import ForzeError

if TYPE_CHECKING:
    from forze.application.integrations.document.coordinator import Coordinator

WATCH_SECONDS: Final = 30.0
"""How long a watch goes on without being renewed."""

MOST_WATCHED: Final = 16
"""Documents of one kind that are watched at a time; the one renewed longest ago goes."""

REMEMBERED: Final = 20

AnsweredBy: TypeAlias = Literal["l1", "cache", "shared", "source", "nobody"]
"""``shared``: another caller's flight; ``nobody``: the read failed."""


class Reason(StrEnum):
    """Why a read went where it went."""

    L1 = "l1"
    HIT = "hit"
    ABSENT = "absent"
    EXPIRED = "expired"
    BODY_GONE = "body_gone"
    OTHER_GENERATION = "other_generation"
    OTHER_SCHEMA = "other_schema"
    LEASE_HELD = "lease_held"
    INTENT = "intent"
    LARGE = "large"
    AWAY = "away"
    JOURNAL = "journal"
    TRANSACTION = "transaction"
    JOINED = "joined"
    REFRESHED = "refreshed"
    CUT_SHORT = "cut_short"


_PASSED: Final = {
    None: Reason.AWAY,
    Miss.AWAY: Reason.AWAY,
    Miss.INTENT: Reason.INTENT,
    Miss.LEASED: Reason.ABSENT,
}
"""Why a read of many went past the cache, by what the cache said."""


class WatchedRead(NamedTuple):
    """Reads of a watched document that went the same way one after the other, mostly one."""

    since: float
    at: float
    """Seconds since the epoch when the first and the last of them ended."""
    times: int
    seconds: float
    """What the last one took."""
    answered_by: AnsweredBy
    reason: Reason
    outcome: str | None = None
    """What became of the flight it led (``filled``, ``refused``, ``bypassed``, ``hit``), or the
    name of the error that ended it."""


def why_absent(entry: Entry | None, *, outlived: bool) -> Reason:
    """Why a read found nothing to hit in what the cache had; ``outlived``: what was there when
    it was last looked at had no time left by then."""
    if entry is None or entry.state == "absent":
        return Reason.EXPIRED if outlived else Reason.ABSENT
    if entry.state == "intent":
        return Reason.INTENT
    if not entry.same_generation:
        return Reason.OTHER_GENERATION
    if not entry.same_schema:
        return Reason.OTHER_SCHEMA
    if entry.state == "lease":
        return Reason.LEASE_HELD
    return Reason.HIT if entry.size_bytes is not None else Reason.BODY_GONE


class Sight:
    """What the coordinator tells of one read under way."""

    __slots__ = ("flight", "followed", "in_transaction", "miss", "owed", "refreshed")

    def __init__(self) -> None:
        self.flight: Flight[Any] | None = None
        self.followed = self.owed = self.in_transaction = self.refreshed = False
        self.miss: Miss | None = None

    def boarded(
        self, flight: Flight[Any], *, followed: bool, owed: bool, miss: Miss | None
    ) -> None:
        """It waits for a flight, its own or another's; ``owed``: past the cache."""
        self.flight, self.followed, self.owed, self.miss = flight, followed, owed, miss

    def verdict(
        self, entry: Entry | None, *, outlived: bool
    ) -> tuple[AnsweredBy, Reason, str | None]:
        """Who answered, why that one, and what became of the flight it led."""
        flight = self.flight
        if self.in_transaction:
            return "source", Reason.TRANSACTION, None
        if self.refreshed:
            return "source", Reason.REFRESHED, None
        if flight is None:
            return "cache", Reason.HIT, None
        if self.followed:
            return "shared", Reason.JOINED, None
        by: AnsweredBy = "cache" if flight.outcome == "hit" else "source"
        return by, self._reason(entry, outlived=outlived), flight.outcome

    def failed(self) -> Reason:
        """Where it was when it failed."""
        waiting = self.flight is not None or self.in_transaction
        return self.verdict(None, outlived=False)[1] if waiting else Reason.CUT_SHORT

    def _reason(self, entry: Entry | None, *, outlived: bool) -> Reason:
        """Why it led a flight."""
        if self.owed:
            return Reason.JOURNAL
        match self.miss:
            case Miss.LEASED:
                why = why_absent(entry, outlived=outlived)
                # It was told so by the read itself; the look is an instant older.
                return Reason.ABSENT if why in (Reason.HIT, Reason.LEASE_HELD) else why
            case Miss.HELD:
                return Reason.LEASE_HELD
            case Miss.INTENT:
                return Reason.INTENT
            case Miss.LARGE:
                return Reason.LARGE
        return Reason.AWAY


class _Watched:
    """One watched document."""

    __slots__ = ("dies_at", "key", "reads", "until")

    def __init__(self, key: Key | None) -> None:
        self.key = key
        self.reads: deque[WatchedRead] = deque(maxlen=REMEMBERED)
        self.until = 0.0
        self.dies_at: float | None = None

    def note(
        self, began: float | None, by: AnsweredBy, reason: Reason, outcome: str | None = None
    ) -> None:
        """A read ended; it began then on the monotonic clock, or took no time."""
        now, took = time(), 0.0 if began is None else monotonic() - began
        if self.reads and self.reads[-1][4:] == (by, reason, outcome):
            last = self.reads.pop()
            self.reads.append(last._replace(at=now, times=last.times + 1, seconds=took))
        else:
            self.reads.append(WatchedRead(now, now, 1, took, by, reason, outcome))

    def looked(self, entry: Entry) -> bool:
        """Note what the cache has; whether it has nothing any more because its life is over."""
        now = monotonic()
        if entry.readable:
            self.dies_at = now + entry.left_ms / 1000
        elif entry.state != "absent" or (self.dies_at is not None and now < self.dies_at):
            self.dies_at = None
        return self.dies_at is not None and now >= self.dies_at


class Watch:
    """The watched documents of one kind."""

    def __init__(self, coordinator: Coordinator[Any, Any]) -> None:
        self._coordinator = coordinator
        self._pointers = coordinator.outlet.pointers
        self._documents: dict[str, _Watched] = {}
        self._by_key: dict[Hashable, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None
        tier = coordinator.tier
        if tier is not None:
            self._find = tier.store.get
            tier.find = self._finding

    def renew(self, pk: UUID) -> None:
        """Watch the bound tenant's document for :data:`WATCH_SECONDS` from now."""
        coordinator = self._coordinator
        address = coordinator.address(pk)
        watched = self._documents.pop(address, None)
        if watched is None:
            tier: Tier[Any] | None = coordinator.tier
            watched = _Watched(None if tier is None else tier.key(pk, address))
            if watched.key is not None:
                self._by_key[watched.key] = watched
        self._documents[address] = watched
        watched.until = monotonic() + WATCH_SECONDS
        if len(self._documents) > MOST_WATCHED:
            self._leave(next(iter(self._documents)))
        if self._timer is None:
            self._arm(WATCH_SECONDS)

    def reads(self, address: str) -> tuple[WatchedRead, ...] | None:
        """The last reads, the newest first; None where it is not watched."""
        watched = self._documents.get(address)
        return None if watched is None else tuple(reversed(watched.reads))

    def looked(self, address: str, entry: Entry) -> None:
        """Somebody looked at what the cache has."""
        if (watched := self._documents.get(address)) is not None:
            watched.looked(entry)

    def end(self) -> None:
        """Watch nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        coordinator = self._coordinator
        if coordinator.watch is self:
            coordinator.watch = None
            if coordinator.tier is not None:
                coordinator.tier.find = self._find

    # -- what reads tell -------------------------------------------------------

    async def read(self, pk: Any) -> Any:
        """:meth:`Coordinator.get`, remembered if the document is watched."""
        coordinator, sight = self._coordinator, Sight()
        address = coordinator.address(pk)
        watched = self._documents.get(address)
        if watched is None:
            return await coordinator.get(pk, sight)
        sight.in_transaction, began = in_transaction(), monotonic()
        looking = asyncio.ensure_future(self._looked(address))
        try:
            # The look goes first: the read may leave a lease there.
            await asyncio.sleep(0)
            document = await coordinator.get(pk, sight)
            entry = await looking
        except BaseException as error:
            watched.note(began, "nobody", sight.failed(), type(error).__name__)
            raise
        finally:
            looking.cancel()
        outlived = entry is not None and watched.looked(entry)
        watched.note(began, *sight.verdict(entry, outlived=outlived))
        return document

    async def _looked(self, address: str) -> Entry | None:
        try:
            return await self._pointers.inspect(address)
        except ForzeError:
            return None

    def probed(self, found: Mapping[str, object]) -> None:
        """A read of many asked the cache; who has to wait for another's load asks again."""
        for address in self._documents.keys() & found.keys():
            answer = found[address]
            if not isinstance(answer, Miss | None):
                self._documents[address].note(None, "cache", Reason.HIT)
            elif answer in _PASSED:
                self._documents[address].note(None, "source", _PASSED[answer])

    def _finding(self, key: Hashable) -> object | None:
        """In the place of the store's ``get``."""
        kept = self._find(key)
        if kept is not None and (watched := self._by_key.get(key)) is not None:
            watched.note(None, "l1", Reason.L1)
        return kept

    # -- the end ---------------------------------------------------------------

    def _leave(self, address: str) -> None:
        watched = self._documents.pop(address)
        if watched.key is not None:
            del self._by_key[watched.key]

    def _arm(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._lapse, context=Context())

    def _lapse(self) -> None:
        now = monotonic()
        for address in [each for each, its in self._documents.items() if its.until <= now]:
            self._leave(address)
        if self._documents:
            self._arm(min(its.until for its in self._documents.values()) - now)
        else:
            self.end()


def watch(coordinator: Coordinator[Any, Any], pk: UUID) -> None:
    """Remember what becomes of the reads of the bound tenant's document, for a while."""
    if coordinator.watch is None:
        coordinator.watch = Watch(coordinator)
    coordinator.watch.renew(pk)
