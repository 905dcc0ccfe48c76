"""The read-through: cache, then source, under one flight. The only place that orchestrates.

One read::

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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from secrets import token_hex
from typing import Generic
from uuid import UUID

import pydantic

from forze.application.contracts.cache import CacheSpec, Fill, Miss, PointerCache
from forze.application.contracts.deps import Resolver
from forze.application.contracts.document import DocumentStore, R
from forze.application.contracts.tenancy import bind_tenant, current_deadline, current_tenant
from forze.application.contracts.transaction import OPEN, in_transaction
from forze.application.integrations.document.codec import DocumentCodec
from forze.application.integrations.document.flight import Again, Flight
from forze.application.integrations.document.freshness import lifetime
from forze.application.integrations.document.outage import Journal
from forze.application.integrations.document.protocol import LEASE_MS, RENEW_MS
from forze.application.integrations.document.stats import CacheCounters, CacheStats
from forze.application.integrations.document.writes import Outlet
from forze.domain.models import utcnow
from forze.errors import BackendTimeout, ForzeError, NotFoundError

Found = bytes | Miss | None
"""What a probe found; None: the cache could not be asked."""

FIRST_LOOK_SECONDS = 0.004
LONGEST_LOOK_SECONDS = 0.1
"""How long a reader waits before it looks again for another process's fill; doubling between."""

ROUNDS = 8
"""How often a caller boards flights that left before it came, before it reads by itself."""


class Coordinator(Generic[R]):
    """Reads one document kind through its cache. Shared by its query and command ports."""

    def __init__(
        self,
        name: str,
        spec: CacheSpec,
        store: DocumentStore[R],
        pointers: PointerCache,
        codec: DocumentCodec[R],
        resolver: Resolver,
        *,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._spec = spec
        self._store = store
        self._pointers = pointers
        self._codec = codec
        self._decode = codec.decode
        self._resolver = resolver
        self._dice = dice
        self._counters = CacheCounters()
        self._journal = Journal(pointers, resolver)
        self._flights: dict[str, Flight[R]] = {}
        self.outlet = Outlet(pointers, self._journal, self._counters)
        """Where writes announce themselves."""

    def address(self, pk: UUID) -> str:
        """The cache address of a document under the bound tenant."""
        return self._pointers.address(str(pk))

    def stats(self) -> CacheStats:
        """What the cache did so far."""
        return self._counters.snapshot(
            journal=len(self._journal), available=self._pointers.available()
        )

    # -- one document --------------------------------------------------------

    async def get(self, pk: UUID) -> R:
        """The document, never older than a write acknowledged before the call."""
        if OPEN.get() and in_transaction():
            return await self.from_source(pk)
        pointers, counters, flights = self._pointers, self._counters, self._flights
        address = pointers.address(str(pk))
        for _ in range(ROUNDS):
            owed = self._journal.active and self._journal.bypasses(address)
            # A flight that left before the write is not for those who come after it.
            name = f"past {address}" if owed else address
            flight = flights.get(name)
            found: Found = None
            token = ""
            if flight is None or flight.loop is not asyncio.get_running_loop():
                token = pointers.token()
                if not owed:
                    try:
                        found = await pointers.read(address, token)
                        if found.__class__ is bytes:
                            document = self._decode(found)
                            counters.hits += 1
                            return document
                    except ForzeError:
                        counters.read_failures += 1
                        pointers.give_back((address,), token)
                    except asyncio.CancelledError:
                        pointers.give_back((address,), token)
                        raise
                    except pydantic.ValidationError:
                        await self._discard(address)
                        found = None
                flight = flights.get(name)
            if flight is None or flight.loop is not asyncio.get_running_loop():
                seat, followed = self._depart(name, pk, address, found, token), 0
            else:
                seat, followed = flight.board(), 1
                if found is Miss.LEASED:
                    pointers.give_back((address,), token)
            answer = await self._wait(seat)
            if not isinstance(answer, Again):
                counters.collapsed += followed
                return answer
        return await self.from_source(pk)

    async def from_source(self, pk: UUID, *, for_update: bool = False) -> R:
        """The document from the source, on this task's own connection; fills nothing."""
        self._counters.bypasses += 1
        return await self._load(pk, for_update=for_update)

    async def _load(self, pk: UUID, *, for_update: bool = False) -> R:
        self._counters.source_reads += 1
        documents = await self._store.fetch((pk,), for_update=for_update)
        if pk not in documents:
            raise not_found(self._name, (pk,))
        return documents[pk]

    async def _discard(self, address: str) -> None:
        """Drop a body that does not fit the model; the read goes on without the cache."""
        self._counters.undecodable += 1
        try:
            await self._pointers.done((address,), token_hex(8))
        except ForzeError:
            self._counters.read_failures += 1

    async def _wait(self, seat: asyncio.Future[R | Again]) -> R | Again:
        """Wait aboard, at most until the caller's own deadline."""
        deadline = current_deadline()
        if deadline is None:
            return await seat
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await seat
        except TimeoutError:
            raise BackendTimeout(
                f"{self._name}: the deadline bound to this task passed while the document was "
                "being loaded; bind a longer one, or look at the source's speed",
                backend="source",
            ) from None

    # -- flights -------------------------------------------------------------

    def _depart(
        self, name: str, pk: UUID, address: str, found: Found, token: str
    ) -> asyncio.Future[R | Again]:
        """Start a flight with its first caller aboard."""
        flight: Flight[R] = Flight()
        seat = flight.board()
        self._flights[name] = flight
        work = self._fly(name, flight, pk, address, found, token, current_tenant())
        self._resolver.spawn(work, name="forze-flight")
        return seat

    async def _fly(
        self,
        name: str,
        flight: Flight[R],
        pk: UUID,
        address: str,
        found: Found,
        token: str,
        tenant: str | None,
    ) -> None:
        try:
            with bind_tenant(tenant) if tenant is not None else _NO_TENANT:
                document = await self._arrive(flight, pk, address, found, token)
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
        flight: Flight[R],
        pk: UUID,
        address: str,
        found: Found,
        token: str,
    ) -> R:
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
                flight.cover()
                return await self.from_source(pk)
            flight.cover()
            try:
                if found is Miss.LARGE:
                    found = await self._pointers.read_large(address) or Miss.HELD
                else:
                    token = self._pointers.token()
                    found = await self._pointers.read(address, token)
                if isinstance(found, bytes):
                    document = self._decode(found)
                    self._counters.hits += 1
                    return document
            except ForzeError:
                self._counters.read_failures += 1
                self._pointers.give_back((address,), token)
                found = None
            except pydantic.ValidationError:
                await self._discard(address)
                found = None

    async def _load_and_fill(
        self,
        flight: Flight[R],
        pk: UUID,
        address: str,
        token: str,
    ) -> R:
        self._counters.misses += 1
        flight.cover()
        with self._leased((address,), token) as lease:
            document = await self._load(pk)
            boarded = flight.aboard
            if await self._fill(lease, {address: document}):
                flight.cover(boarded)
            return document

    # -- many documents ------------------------------------------------------

    async def get_many(self, ids: Sequence[UUID]) -> dict[UUID, R]:
        """Those documents that exist: one probe for all, one query for what is not cached.

        What was leased is loaded and filled before anyone else's load is waited for; what is
        not there in the end joins one further query.
        """
        wanted = {self._pointers.address(str(each)): each for each in ids}
        documents: dict[UUID, R] = {}
        if in_transaction():
            return await self._fetch(list(wanted.values()))
        if self._journal.active:
            owed = [each for each in wanted if self._journal.bypasses(each)]
            documents = await self._fetch([wanted.pop(each) for each in owed])
        patience, pause = LEASE_MS / 1000, FIRST_LOOK_SECONDS
        while wanted:
            documents |= await self._probe_many(wanted, last=patience <= 0)
            if wanted:
                wait = pause * (0.5 + self._dice())
                await asyncio.sleep(wait)
                patience -= wait
                pause = min(2 * pause, LONGEST_LOOK_SECONDS)
        return documents

    async def _fetch(self, ids: Sequence[UUID]) -> dict[UUID, R]:
        if not ids:
            return {}
        self._counters.bypasses += len(ids)
        self._counters.source_reads += 1
        return await self._store.fetch(ids)

    async def _probe_many(self, wanted: dict[str, UUID], *, last: bool) -> dict[UUID, R]:
        """One round: what is cached, and what may be loaded now. Leaves in ``wanted`` what
        another reader is loading, unless this is the ``last`` round."""
        token = self._pointers.token()
        addresses = list(wanted)
        try:
            answers = await self._pointers.read_many(addresses, token)
        except ForzeError:
            self._counters.read_failures += 1
            self._pointers.give_back(addresses, token)
            answers = [None] * len(addresses)  # type: ignore[list-item]
        except asyncio.CancelledError:
            self._pointers.give_back(addresses, token)
            raise
        leased = [a for a, found in zip(addresses, answers, strict=True) if found is Miss.LEASED]
        documents: dict[UUID, R] = {}
        with self._leased(leased, token) as lease:
            plain: list[str] = []
            for address, found in zip(addresses, answers, strict=True):
                if isinstance(found, bytes):
                    try:
                        documents[wanted[address]] = self._decode(found)
                        self._counters.hits += 1
                        del wanted[address]
                        continue
                    except pydantic.ValidationError:
                        await self._discard(address)
                if found is not Miss.LEASED and (found is not Miss.HELD or last):
                    plain.append(address)
            loading = {address: wanted.pop(address) for address in (*leased, *plain)}
            if loading:
                self._counters.misses += len(leased)
                self._counters.bypasses += len(plain)
                self._counters.source_reads += 1
                loaded = await self._store.fetch(list(loading.values()))
                documents |= loaded
                await self._fill(
                    lease, {a: loaded[loading[a]] for a in leased if loading[a] in loaded}
                )
        return documents

    # -- leases and fills ----------------------------------------------------

    def _leased(self, addresses: Sequence[str], token: str) -> _HeldLease:
        return _HeldLease(self._pointers, addresses, token)

    async def _fill(self, lease: _HeldLease, documents: dict[str, R]) -> bool:
        """Store what was loaded under a lease; whether all of it was."""
        fills = [
            fill
            for address, document in documents.items()
            if (fill := self._filling(address, lease.token, document)) is not None
        ]
        if not fills:
            return False
        try:
            stored = await self._pointers.fill(fills)
        except ForzeError:
            self._counters.fill_failures += len(fills)
            return False
        lease.ended([fill.address for fill in fills])
        self._counters.fills += sum(stored)
        self._counters.rejected_fills += len(stored) - sum(stored)
        return all(stored) and len(fills) == len(documents)

    def _filling(self, address: str, token: str, document: R) -> Fill | None:
        body = self._codec.encode(document)
        if body is None or len(body) > self._pointers.max_value_bytes:
            self._counters.uncacheable += 1
            return None
        life = lifetime(self._spec, document.last_update_at, utcnow(), self._dice())
        return Fill(address, token, document.rev, body, max(1, life // timedelta(milliseconds=1)))


class _HeldLease:
    """Leases while their documents are loaded: renewed every second, given back at the end."""

    __slots__ = ("_addresses", "_pointers", "_timer", "token")

    def __init__(self, pointers: PointerCache, addresses: Sequence[str], token: str) -> None:
        self._pointers = pointers
        self._addresses = set(addresses)
        self._timer: asyncio.TimerHandle | None = None
        self.token = token

    def __enter__(self) -> _HeldLease:
        if self._addresses:
            self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._addresses:
            self._pointers.give_back(list(self._addresses), self.token)

    def ended(self, addresses: Sequence[str]) -> None:
        """These were filled, or refused: there is no lease left to give back."""
        self._addresses.difference_update(addresses)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(RENEW_MS / 1000, self._renew)

    def _renew(self) -> None:
        self._pointers.renew(list(self._addresses), self.token)
        self._arm()


_NO_TENANT: AbstractContextManager[None] = nullcontext()


def not_found(name: str, ids: Sequence[UUID]) -> NotFoundError:
    """The error for documents that do not exist."""
    listed = ", ".join(str(each) for each in ids[:5])
    if len(ids) > 5:
        listed += f" and {len(ids) - 5} more"
    return NotFoundError(
        f"{name}: no document {listed}; it was never created, or has been removed",
        resource=name,
        ids=ids,
    )
