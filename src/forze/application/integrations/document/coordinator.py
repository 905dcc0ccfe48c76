"""The read-through: cache, then source, under one flight. The only place that orchestrates.

One read that the process's own tier (``l1``) does not answer::

    probe ─► body                     decode, done: one round trip
          ─► lease taken              load, fill                      ┐
          ─► another reader's lease   look again until it has filled  │ one flight
          ─► writes in flight         load, fill nothing              │ per document
          ─► cache away               load, fill nothing              ┘

What makes it never stale is in ``protocol`` (pointers), ``flight`` (who may share) and
``writes`` (when a write is acknowledged).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import TYPE_CHECKING, Generic, cast

from forze.application.contracts.cache import Aging, CacheSpec, Miss, PointerCache
from forze.application.contracts.deps import Resolver
from forze.application.contracts.tenancy import bind_again, current_deadline, current_tenant
from forze.application.contracts.transaction import OPEN, in_transaction
from forze.application.integrations.document.codec import SEAL_MARK, Codec, V, unseal
from forze.application.integrations.document.filling import Filler, K, Source
from forze.application.integrations.document.flight import Again, Flight
from forze.application.integrations.document.l1.tier import Tier
from forze.application.integrations.document.outage import Journals
from forze.application.integrations.document.protocol import LEASE_MS
from forze.application.integrations.document.refresh import EarlyRefresh
from forze.application.integrations.document.stats import CacheCounters, CacheStats
from forze.application.integrations.document.writes import Outlet
from forze.errors import BackendTimeout, ForzeError, NotFoundError

if TYPE_CHECKING:
    from forze.application.integrations.document.spans import Spans
    from forze.application.integrations.document.watching import Sight, Watch

FIRST_LOOK_SECONDS = 0.004
LONGEST_LOOK_SECONDS = 0.1
"""How long a reader waits before it looks again for another process's fill; doubling between."""

ROUNDS = 8
"""How often a caller boards flights that left before it came, before it reads by itself."""


class Coordinator(Generic[V, K]):
    """Reads one document kind through its cache. Shared by its query and command ports.

    So it reads whatever has a source: ``str(pk)`` is the key of what ``pk`` names.
    """

    def __init__(
        self,
        name: str,
        spec: CacheSpec,
        store: Source[V, K],
        pointers: PointerCache,
        codec: Codec[V],
        resolver: Resolver,
        tier: Tier[V] | None = None,
        *,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._store = store
        self._pointers = pointers
        self._codec = codec
        self._decode = codec.decode
        self._resolver = resolver
        self._dice = dice
        self._counters = counters = CacheCounters()
        self._flights: dict[str, Flight[V]] = {}
        self._journal = Journals(pointers, resolver, tier=tier)
        self.tier = tier
        """The entries kept in this process, None without."""
        self.filler = Filler(
            name, spec, store, pointers, codec, tier, self._journal, counters, dice
        )
        self._refresh = EarlyRefresh(
            name, spec, pointers, self.filler, tier, resolver, counters, dice
        )
        self.outlet = Outlet(pointers, self._journal, counters)
        """Where writes announce themselves."""
        self.watch: Watch | None = None
        """Who wants to know what becomes of some reads, and why; mostly nobody."""
        self._spans: Spans | None = None
        if tier is not None:
            pointers.watch(tier)

    def address(self, pk: K) -> str:
        """The cache address of a document under the bound tenant."""
        return self._pointers.address(str(pk))

    def loading(self, address: str) -> bool:
        """Whether a read of it is under way in this process, beyond the cache's first answer."""
        return address in self._flights or f"past {address}" in self._flights

    def stats(self) -> CacheStats:
        """What the cache did so far."""
        tier = self.tier
        return self._counters.snapshot(
            journal=len(self._journal),
            available=self._pointers.available(),
            pushes=0 if tier is None else tier.pushed,
            flushes=0 if tier is None else tier.flushes,
        )

    def trace(self, spans: Spans) -> None:
        """Make spans of flights, refreshes and the ends of writes from now on."""
        self._spans = self._refresh.spans = self.outlet.spans = spans

    # -- one document --------------------------------------------------------

    async def get(self, pk: K, sight: Sight | None = None) -> V:
        """The document, never older than a write acknowledged before the call.

        The tier has been asked already: see ``DocumentQuery.get``.
        """
        if sight is None and self.watch is not None:
            return cast(V, await self.watch.read(pk))
        if OPEN.get() and in_transaction():
            return await self.from_source(pk)
        pointers, flights = self._pointers, self._flights
        address = pointers.address(str(pk))
        for _ in range(ROUNDS):
            owed = self._journal.active and self._journal.bypasses(address)
            # A flight that left before the write is not for those who come after it.
            name = f"past {address}" if owed else address
            flight = flights.get(name)
            found: V | Miss | None = None
            token = ""
            if flight is None or flight.loop is not asyncio.get_running_loop():
                if not owed:
                    token = pointers.token(address)
                    mark = 0.0 if self.tier is None else self._reserve(pk, address)
                    try:  # `_probe`, but a hit without a coroutine of its own: the hottest lines
                        reply = await pointers.read(address, token)
                    except (ForzeError, asyncio.CancelledError) as error:
                        self._unanswered({address: pk}, token)
                        if isinstance(error, asyncio.CancelledError):
                            raise
                    else:
                        if not isinstance(reply, bytes):
                            found = await self._told(pk, address, mark, reply, sight)
                        elif (found := self._opened(pk, address, mark, reply)) is None:
                            await self._discard((address,))
                    if found is not None and found.__class__ is not Miss:
                        return cast(V, found)
                flight = flights.get(name)
            miss = cast(Miss | None, found)
            if flight is None or flight.loop is not asyncio.get_running_loop():
                seat, followed = self._depart(name, pk, address, miss, token), 0
            else:
                seat, followed = flight.board(), 1
                if miss is Miss.LEASED:
                    pointers.give_back((address,), token)
            if sight is not None:
                sight.boarded(self._flights[name], followed=bool(followed), owed=owed, miss=miss)
            answer = await self._wait(seat)
            if not isinstance(answer, Again):
                self._counters.collapsed += followed
                return answer
        return await self.from_source(pk)

    async def from_source(self, pk: K, *, for_update: bool = False) -> V:
        """The document from the source, on this task's own connection; fills nothing."""
        self._counters.bypasses += 1
        return await self.filler.load(pk, for_update=for_update)

    # -- asking the cache ----------------------------------------------------

    async def _probe(
        self, pk: K, address: str, token: str, *, large: bool = False
    ) -> V | Miss | None:
        """Ask the cache: the document, why there is none, or None where it could not be asked."""
        pointers = self._pointers
        mark = self._reserve(pk, address)
        try:
            found = await (pointers.read_large(address) if large else pointers.read(address, token))
        except (ForzeError, asyncio.CancelledError) as error:
            self._unanswered({address: pk}, token)
            if isinstance(error, asyncio.CancelledError):
                raise
            return None
        return await self._told(pk, address, mark, found)

    async def _told(
        self,
        pk: K,
        address: str,
        mark: float,
        found: bytes | Aging | Miss | None,
        sight: Sight | None = None,
    ) -> V | Miss | None:
        """What the cache's answer comes to: :meth:`_probe` from there on."""
        if found is None or isinstance(found, Miss):
            return self._missed(pk, address, mark, found)
        document = self._opened(pk, address, mark, found)
        if document is None:
            await self._discard((address,))
        elif found.__class__ is Aging:
            fresh = await self._refresh.considered(pk, address, document, found)
            if sight is not None:
                sight.refreshed = fresh is not document
            return fresh
        return document

    async def _probe_all(
        self, wanted: Mapping[str, K], token: str, aging: dict[str, Aging], unfit: list[str]
    ) -> dict[str, V | Miss | None]:
        """:meth:`_probe` for many, in one round trip; left to the caller are hits that may be
        refreshed (``aging``), and to discard those that do not fit the model (``unfit``)."""
        marks = [self._reserve(pk, address) for address, pk in wanted.items()]
        try:
            answers = await self._pointers.read_many(list(wanted), token)
        except (ForzeError, asyncio.CancelledError) as error:
            self._unanswered(wanted, token)
            if isinstance(error, asyncio.CancelledError):
                raise
            return dict.fromkeys(wanted)
        found: dict[str, V | Miss | None] = {}
        for (address, pk), mark, answer in zip(wanted.items(), marks, answers, strict=True):
            if isinstance(answer, Miss):
                found[address] = self._missed(pk, address, mark, answer)
                continue
            document = found[address] = self._opened(pk, address, mark, answer)
            if document is None:
                unfit.append(address)
            elif isinstance(answer, Aging):
                aging[address] = answer
        return found

    def _reserve(self, pk: K, address: str) -> float:
        tier = self.tier
        return 0.0 if tier is None else tier.reserve(tier.key(pk, address))

    def _opened(self, pk: K, address: str, mark: float, found: bytes | Aging) -> V | None:
        """The document of a hit, None where the body does not fit the model."""
        body = found if isinstance(found, bytes) else found.body
        if body.startswith(SEAL_MARK):
            body, _ = unseal(body)
        try:
            document = self._decode(body)
        except Exception:  # a model's own validators may raise anything
            return None
        self._counters.hits += 1
        if self.tier is not None:
            self.tier.take(self.tier.key(pk, address), mark, document, body)
        return document

    def _missed(self, pk: K, address: str, mark: float, found: Miss | None) -> Miss:
        if self.tier is not None:
            key = self.tier.key(pk, address)
            if found is Miss.LEASED or found is Miss.AWAY:
                self.tier.forget(key)  # we changed the pointer, or may have: nothing may stand
            else:
                self.tier.withdraw(key, mark)
        return Miss.HELD if found is None else found

    def _unanswered(self, asked: Mapping[str, K], token: str) -> None:
        self._counters.read_failures += 1
        self._pointers.give_back(list(asked), token)
        if self.tier is not None:
            for address, pk in asked.items():
                self.tier.forget(self.tier.key(pk, address))

    async def _discard(self, addresses: Sequence[str]) -> None:
        """Drop bodies that do not fit the model; the read goes on without the cache."""
        self._counters.undecodable += len(addresses)
        try:
            await self._pointers.done(addresses, token_hex(8))
        except ForzeError:
            self._counters.read_failures += 1

    async def _wait(self, seat: asyncio.Future[V | Again]) -> V | Again:
        """Wait aboard, at most until the caller's own deadline."""
        deadline = current_deadline()
        if deadline is None:
            return await seat
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await seat
        except TimeoutError:
            raise self._too_late() from None

    async def _sleep(self, seconds: float) -> None:
        """Sleep, at most until the caller's own deadline."""
        deadline = current_deadline()
        left = seconds if deadline is None else deadline - time.monotonic()
        await asyncio.sleep(min(seconds, left))
        if left < seconds:
            raise self._too_late()

    def _too_late(self) -> BackendTimeout:
        return BackendTimeout(
            f"{self._name}: the deadline bound to this task passed while the document was "
            "being loaded; bind a longer one, or look at the source's speed",
            backend="source",
        )

    # -- flights -------------------------------------------------------------

    def _depart(
        self, name: str, pk: K, address: str, found: Miss | None, token: str
    ) -> asyncio.Future[V | Again]:
        """Start a flight with its first caller aboard."""
        flight: Flight[V] = Flight()
        if self._spans is not None:
            flight.caller = self._spans.caller()
        seat = flight.board()
        self._flights[name] = flight
        work = self._fly(name, flight, pk, address, found, token, current_tenant())
        self._resolver.spawn(work, name="forze-flight")
        return seat

    async def _fly(
        self,
        name: str,
        flight: Flight[V],
        pk: K,
        address: str,
        found: Miss | None,
        token: str,
        tenant: str | None,
    ) -> None:
        try:
            with bind_again(tenant):
                arriving = self._arrive(flight, pk, address, found, token)
                if self._spans is not None:
                    arriving = self._spans.load(flight, arriving)
                document = await arriving
        except BaseException as error:
            self._flights.pop(name, None)
            flight.crash(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._flights.pop(name, None)
            flight.land(document, self._codec.copy)

    async def _arrive(
        self,
        flight: Flight[V],
        pk: K,
        address: str,
        found: Miss | None,
        token: str,
    ) -> V:
        """Get the document, from whatever the first probe found on."""
        patience, pause = LEASE_MS / 1000, FIRST_LOOK_SECONDS
        while True:
            if found is Miss.LEASED:
                return await self._load_and_fill(flight, pk, address, token)
            if found is Miss.HELD and patience > 0:
                wait = pause * (0.5 + self._dice())
                await asyncio.sleep(wait)
                patience -= wait
                pause = min(2 * pause, LONGEST_LOOK_SECONDS)
            elif found is not Miss.LARGE:
                flight.outcome = "bypassed"
                flight.cover()
                return await self.from_source(pk)
            if self._journal.active and self._journal.bypasses(address):
                found = None  # written here meanwhile, and the cache was not told
                continue
            flight.cover()
            large = found is Miss.LARGE
            if not large:
                token = self._pointers.token(address)
            answer = await self._probe(pk, address, token, large=large)
            if answer is not None and not isinstance(answer, Miss):
                return answer
            found = answer

    async def _load_and_fill(
        self,
        flight: Flight[V],
        pk: K,
        address: str,
        token: str,
    ) -> V:
        self._counters.misses += 1
        flight.cover()
        with self.filler.leased((address,), token) as lease:
            document = await self.filler.load(pk)
            boarded = flight.aboard
            flight.outcome = "refused"
            if await self.filler.fill(lease, {address: document}):
                flight.outcome = "filled"
                flight.cover(boarded)
            return document

    # -- many documents ------------------------------------------------------

    async def get_many(self, ids: Sequence[K]) -> dict[K, V]:
        """Those documents that exist: one probe for all, one query for what is not cached.

        What was leased is loaded and filled before anyone else's load is waited for; what is
        not there in the end joins one further query.
        """
        if in_transaction():
            return dict(await self._fetch(ids))
        wanted = {self._pointers.address(str(each)): each for each in ids}
        documents = self._kept(wanted)
        patience, pause = LEASE_MS / 1000, FIRST_LOOK_SECONDS
        while wanted:
            if self._journal.active:
                owed = [each for each in wanted if self._journal.bypasses(each)]
                documents |= await self._fetch([wanted.pop(each) for each in owed])
            documents |= await self._probe_many(wanted, last=patience <= 0)
            if wanted:
                wait = pause * (0.5 + self._dice())
                await self._sleep(wait)
                patience -= wait
                pause = min(2 * pause, LONGEST_LOOK_SECONDS)
        return documents

    def _kept(self, wanted: dict[str, K]) -> dict[K, V]:
        """Take out of ``wanted`` what the tier has."""
        documents: dict[K, V] = {}
        if self.tier is not None:
            for address, pk in tuple(wanted.items()):
                document = self.tier.get(self.tier.key(pk, address))
                if document is not None:
                    documents[wanted.pop(address)] = document
        return documents

    async def _fetch(self, ids: Sequence[K]) -> Mapping[K, V]:
        if not ids:
            return {}
        self._counters.bypasses += len(ids)
        return await self.filler.load_many(ids)

    async def _probe_many(self, wanted: dict[str, K], *, last: bool) -> dict[K, V]:
        """One round: what is cached, and what may be loaded now. Leaves in ``wanted`` what
        another reader is loading, unless this is the ``last`` round."""
        token = self._pointers.token(next(iter(wanted), None))
        aging: dict[str, Aging] = {}
        unfit: list[str] = []
        found = await self._probe_all(wanted, token, aging, unfit)
        if self.watch is not None:
            self.watch.probed(found)
        ids = {address: wanted[address] for address in aging}
        documents: dict[K, V] = {}
        leased = [address for address, each in found.items() if each is Miss.LEASED]
        with self.filler.leased(leased, token) as lease:
            if unfit:
                await self._discard(unfit)
            plain: list[str] = []
            for address, each in found.items():
                if each is not None and not isinstance(each, Miss):
                    documents[wanted.pop(address)] = each
                elif each is not Miss.LEASED and (each is not Miss.HELD or last):
                    plain.append(address)
            loading = {address: wanted.pop(address) for address in (*leased, *plain)}
            if loading:
                self._counters.misses += len(leased)
                self._counters.bypasses += len(plain)
                loaded = await self.filler.load_many(list(loading.values()))
                documents |= loaded
                filling = {a: loaded[loading[a]] for a in leased if loading[a] in loaded}
                await self.filler.fill(lease, filling)
        await asyncio.gather(
            *(self._refreshed(documents, ids[each], each, aging[each]) for each in aging)
        )
        return documents

    async def _refreshed(self, documents: dict[K, V], pk: K, address: str, found: Aging) -> None:
        """Put the refreshed document in the place of the old, or nothing if it is gone."""
        try:
            documents[pk] = await self._refresh.considered(pk, address, documents[pk], found)
        except NotFoundError:
            del documents[pk]
