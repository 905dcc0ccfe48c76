"""Pointers on many servers: for each route its own, told apart by the address.

An address says where it leads: the route, a space (a key has none), then the key on that server.
So what is under way for an address (a flight, a debt, an entry kept in the process) ends where it
began, whichever tenant is bound by then; and servers share neither generations nor tokens,
because each operation is carried out by the :class:`~forze_redis.cache.RedisPointers` made for
that very client.

Where documents are cached depends on the tenant alone (``RoutedRedisClient.tenants_route``), so
that a write finds every copy of what it changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import count
from secrets import token_hex
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

from forze.application.contracts.cache import (
    Aging,
    CacheInvalidation,
    CacheSpec,
    Entry,
    Fill,
    Miss,
    OnOutage,
)
from forze.application.integrations.document.protocol import LEASE_MS
from forze.errors import ConfigurationError
from forze_redis.cache import RedisPointers
from forze_redis.client import RedisClient
from forze_redis.config import RedisCacheConfig
from forze_redis.keys import POINTER, CacheKeys
from forze_redis.routed.client import RoutedRedisClient
from forze_redis.routed.seats import Seat
from forze_redis.wire.link import weakly

T = TypeVar("T")

_log = logging.getLogger("forze.redis")

_LEASE_SECONDS = LEASE_MS / 1000

TOKEN_PREFIX = 12
"""How much of a token says which client, and which connection of it, it was made for."""


def at(route: str, key: str) -> str:
    """The address of a key behind a route."""
    return f"{route} {key}"


def parts(address: str) -> tuple[str, str]:
    """The route and the key of an address."""
    route, _, key = address.rpartition(" ")
    return route, key


def by_route(addresses: Iterable[str]) -> dict[str, list[str]]:
    """The keys of addresses, for each route in their order."""
    apart: dict[str, list[str]] = {}
    for address in addresses:
        route, key = parts(address)
        apart.setdefault(route, []).append(key)
    return apart


class RoutedPointers:
    """Pointer operations on many servers, for readers of one schema. A ``PointerCache``."""

    def __init__(
        self,
        client: RoutedRedisClient,
        keys: CacheKeys,
        config: RedisCacheConfig,
        spec: CacheSpec,
        schema: str,
    ) -> None:
        self._client = client
        self._keys = keys
        self._config = config
        self._spec = spec
        self._schema = schema
        self._count = count()
        self._lessors: WeakValueDictionary[str, Seat] = WeakValueDictionary()
        self._tiers: WeakSet[CacheInvalidation] = WeakSet()

    @property
    def on_outage(self) -> OnOutage:
        return self._config.on_outage

    @property
    def max_value_bytes(self) -> int:
        return self._config.max_value_bytes

    @property
    def tenant_aware(self) -> bool:
        return self._keys.tenant_aware

    @property
    def one_namespace(self) -> bool:
        return False

    def address(self, key: str) -> str:
        pointer = self._keys.pointer(key)
        return at(self._client.tenants_route(), pointer)

    def token(self, address: str | None = None) -> str:
        route = self._client.tenants_route() if address is None else parts(address)[0]
        try:
            seat = self._client.routes.seat(route)
        except ConfigurationError:
            return token_hex(8)  # who asks under it is told why
        if seat.open is not None:
            return self._of(seat).token()
        prefix: str = seat.ports.setdefault((self, "prefix"), token_hex(TOKEN_PREFIX // 2))
        return f"{prefix}.{next(self._count):x}"

    # -- reading ---------------------------------------------------------------

    async def read(self, address: str, token: str) -> bytes | Aging | Miss:
        route, key = parts(address)
        async with self._client.hold_cached(route) as seat:
            found = await self._of(seat).read(key, token)
            if found is Miss.LEASED:
                self._leased(seat, token)
            return found

    async def read_many(self, addresses: Sequence[str], token: str) -> list[bytes | Aging | Miss]:
        async def read(seat: Seat, keys: Sequence[str]) -> Sequence[bytes | Aging | Miss]:
            answers = await self._of(seat).read_many(keys, token)
            if Miss.LEASED in answers:
                self._leased(seat, token)
            return answers

        return await self._each(addresses, read)

    async def read_large(self, address: str) -> bytes | None:
        route, key = parts(address)
        async with self._client.hold_cached(route) as seat:
            return await self._of(seat).read_large(key)

    async def inspect(self, address: str) -> Entry:
        route, key = parts(address)
        async with self._client.hold_cached(route) as seat:
            return await self._of(seat).inspect(key)

    async def elect(self, address: str, token: str) -> bool:
        route, key = parts(address)
        async with self._client.hold_cached(route) as seat:
            elected = await self._of(seat).elect(key, token)
            if elected:
                self._leased(seat, token)
            return elected

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        apart: dict[tuple[str, str], list[Fill]] = {}
        for each in fills:
            apart.setdefault((parts(each.address)[0], each.token), []).append(each)
        stored = await asyncio.gather(
            *(self._fill(route, token, its) for (route, token), its in apart.items())
        )
        answers = dict(zip(apart, map(iter, stored), strict=True))
        return [next(answers[parts(each.address)[0], each.token]) for each in fills]

    async def _fill(self, route: str, token: str, fills: Sequence[Fill]) -> list[bool]:
        """Store under one token, over the client that took its lease."""
        its = [each._replace(address=parts(each.address)[1]) for each in fills]
        lessor = self._lessor(token)
        if lessor is not None:
            stored = await self._of(lessor).fill(its)
            lessor.returned(token)
            return stored
        async with self._client.hold_cached(route) as seat:
            return await self._of(seat).fill(its)

    def renew(self, addresses: Sequence[str], token: str) -> None:
        for seat, keys in self._lessors_of(addresses, token):
            self._of(seat).renew(keys, token)
            seat.lend(token, _LEASE_SECONDS)

    def give_back(self, addresses: Sequence[str], token: str) -> None:
        for seat, keys in self._lessors_of(addresses, token):
            self._of(seat).give_back(keys, token)
            seat.returned(token)

    # -- writing ---------------------------------------------------------------

    def intend(self, addresses: Sequence[str], write_id: str) -> Awaitable[None]:
        return self._tell(addresses, lambda its, keys: its.intend(keys, write_id))

    def done(self, addresses: Sequence[str], write_id: str) -> Awaitable[None]:
        return self._tell(addresses, lambda its, keys: its.done(keys, write_id))

    def _tell(
        self,
        addresses: Sequence[str],
        tell: Callable[[RedisPointers, Sequence[str]], Awaitable[None]],
    ) -> Awaitable[Any]:
        """Send now what can be; what comes back is awaited for the answer to all of it."""
        self._drop(addresses)

        async def told(route: str, keys: Sequence[str]) -> None:
            async with self._client.hold_cached(route) as seat:
                await tell(self._of(seat), keys)

        telling: list[Awaitable[None]] = []
        for route, keys in by_route(addresses).items():
            seat = self._client.routes.seat(route)
            sendable = seat.open is not None and seat.open.available()
            telling.append(tell(self._of(seat), keys) if sendable else told(route, keys))
        answer = asyncio.gather(*telling)
        answer.add_done_callback(lambda _: self._drop(addresses))
        return answer

    def namespace(self, address: str | None = None) -> str:
        if address is None:
            address = at(self._client.tenants_route(), self._keys.prefix())
        return address[: address.index(POINTER)]

    async def clear(self, namespace: str) -> int:
        route, name = parts(namespace)
        self._flush()
        try:
            async with self._client.hold_cached(route) as seat:
                return await self._of(seat).clear(name)
        finally:
            self._flush()

    # -- the servers' state ----------------------------------------------------

    def available(self, place: str | None = None) -> bool:
        if place is None:
            return all(each.available() for each in self._client.clients.values())
        route, key = parts(place)
        seat = self._client.routes.look(route)
        return seat is None or seat.open is None or self._of(seat).available(key)

    def on_recovery(self, callback: Callable[[], None]) -> None:
        """A client that takes the place of another is a recovery too."""
        callback = weakly(callback)

        def listen(seat: Seat) -> None:
            seat.client.on_recovery(callback)
            callback()

        self._client.routes.listen(listen)

    def owing(self, namespace: str, owes: bool) -> None:
        """The client of a route that is owed something is not closed for being idle."""
        self._client.routes.want(parts(namespace)[0], (id(self), namespace), owes)

    # -- the process's own tier ------------------------------------------------

    def watch(self, tier: CacheInvalidation) -> None:
        if self._config.invalidation_push:
            _log.warning(
                "cache %r: invalidation_push has no effect through a RoutedRedisClient; its "
                "in-process entries live for their ttl",
                self._spec.name,
            )
        if not self._tiers:
            self._client.routes.listen(weakly(self._follow))
        self._tiers.add(tier)

    def _follow(self, seat: Seat) -> None:
        """Hear of what others in this process change through this very client."""
        dynamic = callable(self._config.namespace)
        changes = seat.port((self, "changes"), lambda _: _Changes(seat.route, self._tiers))
        prefix = None if dynamic else self._keys.prefix()
        seat.client.tracking.follow(prefix, changes, push=False)

    def _drop(self, addresses: Sequence[str]) -> None:
        for tier in self._tiers:
            tier.drop(addresses)

    def _flush(self) -> None:
        for tier in self._tiers:
            tier.flush()

    # -- one client's pointers -------------------------------------------------

    def _of(self, seat: Seat) -> RedisPointers:
        return seat.port(self, lambda client: self._made(seat, client))

    def _made(self, seat: Seat, client: RedisClient) -> RedisPointers:
        prefix = seat.ports.pop((self, "prefix"), None)
        return RedisPointers(
            client, self._keys, self._config, self._spec, self._schema, prefix=prefix
        )

    # -- leases: on another client than that which took them they are worth nothing -----

    def _leased(self, seat: Seat, token: str) -> None:
        """Keep the client open for as long as a lease lasts that it took, and fill there."""
        seat.lend(token, _LEASE_SECONDS)
        self._lessors[token[:TOKEN_PREFIX]] = seat

    def _lessor(self, token: str) -> Seat | None:
        """The seat that took leases under ``token``, while its client is open."""
        seat = self._lessors.get(token[:TOKEN_PREFIX])
        return seat if seat is not None and seat.client.connected else None

    def _lessors_of(
        self, addresses: Sequence[str], token: str
    ) -> Iterator[tuple[Seat, Sequence[str]]]:
        lessor = self._lessor(token)
        for route, keys in by_route(addresses).items():
            seat = lessor or self._client.routes.look(route)
            if seat is not None and seat.open is not None:
                yield seat, keys

    async def _each(
        self,
        addresses: Sequence[str],
        ask: Callable[[Seat, Sequence[str]], Awaitable[Sequence[T]]],
    ) -> list[T]:
        """The answers for all, in order; the routes are asked together."""

        async def asked(route: str, keys: Sequence[str]) -> Iterator[T]:
            async with self._client.hold_cached(route) as seat:
                return iter(await ask(seat, keys))

        apart = by_route(addresses)
        answers = await asyncio.gather(*(asked(route, keys) for route, keys in apart.items()))
        of = dict(zip(apart, answers, strict=True))
        return [next(of[parts(address)[0]]) for address in addresses]


class _Changes:
    """To one client's ``Tracking`` a tier; tells the tiers, in their addresses, what it hears."""

    def __init__(self, route: str, tiers: WeakSet[CacheInvalidation]) -> None:
        self._route = route
        self._tiers = tiers

    def drop(self, addresses: Iterable[str], *, pushed: bool = False) -> None:
        changed = [at(self._route, key) for key in addresses]
        for tier in self._tiers:
            tier.drop(changed, pushed=pushed)

    def flush(self) -> None:
        """A connection was replaced. Without pushes entries live for their ttl, so that one
        tenant's server does not empty the others' tier; who clears a namespace flushes it."""

    def trust(self, until: float, bound_seconds: float) -> None:
        """Without pushes there is nothing to trust."""
