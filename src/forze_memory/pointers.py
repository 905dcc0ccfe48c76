"""The pointer operations of the read-through, on dictionaries.

Every transition is the function of ``protocol`` that also defines what the scripts of the
Redis cache do; here it runs as it is. What is added is where pointers and bodies are kept,
and for how long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import count
from secrets import token_hex
from weakref import WeakKeyDictionary

from forze.application.contracts.cache import (
    Aging,
    CacheInvalidation,
    CacheSpec,
    Entry,
    Fill,
    Miss,
    OnOutage,
)
from forze.application.contracts.tenancy import require_tenant
from forze.application.integrations.document import protocol
from forze.application.integrations.document.codec import SEAL_MARK
from forze.application.integrations.document.protocol import (
    GENERATION_CHARS,
    INTENT_MS,
    LEASE_MS,
    Intent,
    Lease,
    Pointer,
    Read,
    Value,
)
from forze.application.integrations.keys import encode_part
from forze_memory.config import MemoryCacheConfig
from forze_memory.keyspace import Keyspace

GENERATION = "inmemory"
"""The generation of a server that never fails over: it lives and dies with the process."""

_MISSES = {Read.LEASED: Miss.LEASED, Read.HELD: Miss.HELD, Read.INTENT: Miss.INTENT}


class Addresses:
    """Names the entries of one cache: namespace, tenant where there is one, key."""

    __slots__ = ("_resource", "prefix", "tenant_aware")

    def __init__(self, namespace: str, *, tenant_aware: bool, resource: str) -> None:
        self.prefix = encode_part(namespace, "namespace") + "/"
        self.tenant_aware = tenant_aware
        self._resource = resource

    def of(self, key: str) -> str:
        """The address of ``key`` under the bound tenant."""
        if not self.tenant_aware:
            return self.prefix + encode_part(key)
        tenant = encode_part(require_tenant(self._resource), "tenant")
        return f"{self.prefix}{tenant}/{encode_part(key)}"


class MemoryCacheServer:
    """Pointers, bodies and plain values: what all caches of one module share.

    ``clock`` answers seconds, and never goes back.
    """

    __slots__ = ("_clock", "_tiers", "bodies", "plain", "pointers")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.pointers: Keyspace[str, Pointer] = Keyspace()
        self.bodies: Keyspace[tuple[str, str], bytes] = Keyspace()
        self.plain: Keyspace[str, bytes] = Keyspace()
        self._tiers: WeakKeyDictionary[CacheInvalidation, str] = WeakKeyDictionary()

    def watch(self, prefix: str, tier: CacheInvalidation) -> None:
        """Tell ``tier`` of changes under ``prefix``, whoever makes them."""
        self._tiers[tier] = prefix

    def changed(self, address: str) -> None:
        """A value is no longer what it was: the tiers drop it."""
        for tier, prefix in tuple(self._tiers.items()):
            if address.startswith(prefix):
                tier.drop((address,))

    def cleared(self, prefix: str) -> None:
        """Nothing under ``prefix`` is what it was."""
        for tier, watched in tuple(self._tiers.items()):
            if watched == prefix:
                tier.flush()

    def now(self) -> int:
        """Milliseconds on the server's clock."""
        return round(self._clock() * 1000)

    def pointer(self, address: str, now: int) -> Pointer:
        """The pointer; a value whose body is gone is none."""
        pointer = self.pointers.get(address, now)
        if isinstance(pointer, Value) and self.bodies.get((address, pointer.version), now) is None:
            return None
        return pointer

    def body(self, address: str, pointer: Pointer, now: int) -> bytes | None:
        """What a value's pointer points to."""
        if not isinstance(pointer, Value):
            return None
        return self.bodies.get((address, pointer.version), now)

    def put(
        self,
        address: str,
        pointer: Value,
        body: bytes,
        now: int,
        *,
        life_ms: int,
        window_ms: int = 0,
    ) -> None:
        """Store a value's pointer for ``life_ms``, its body for the window, if there is one."""
        body_ms = min(window_ms or life_ms, life_ms)
        self._place(address, pointer, now + life_ms, now)
        self.bodies.set((address, pointer.version), body, now + body_ms, now)

    def prolong(self, address: str, pointer: Value, window_ms: int, now: int) -> None:
        """Let a body that was read live on for the window, no longer than its pointer."""
        place = address, pointer.version
        left = self.bodies.deadline(place) - now
        life = min(window_ms, self.pointers.deadline(address) - now)
        body = self.bodies.get(place, now)
        if 4 * left < 3 * window_ms and life > left and body is not None:
            self.bodies.set(place, body, now + life, now)

    def replace(self, address: str, pointer: Pointer, now: int, *, keep_body: bool = False) -> None:
        """Store what a transition made of the pointer, for as long as the state itself says."""
        match pointer:
            case None:
                self._drop_body(address, None, now, keep=keep_body)
                self.pointers.remove(address, now)
                self.changed(address)
            case Lease(until=until):
                self._place(address, pointer, until, now)
            case Intent(ids):
                self._place(address, pointer, max(deadline for _, deadline in ids), now)
                self.changed(address)
            case Value():
                self._place(address, pointer, self.pointers.deadline(address), now)

    def _place(self, address: str, pointer: Pointer, deadline: int, now: int) -> None:
        self._drop_body(address, pointer, now, keep=False)
        self.pointers.set(address, pointer, deadline, now)

    def _drop_body(self, address: str, new: Pointer, now: int, *, keep: bool) -> None:
        """Free the body of the value that ``new`` replaces."""
        old = self.pointers.get(address, now)
        if isinstance(old, Value) and not keep:
            kept = isinstance(new, Value) and new.version == old.version
            if not kept:
                self.bodies.remove((address, old.version), now)


class MemoryPointers:
    """Pointer operations for readers of one schema. Implements ``PointerCache``."""

    def __init__(
        self,
        server: MemoryCacheServer,
        addresses: Addresses,
        config: MemoryCacheConfig,
        spec: CacheSpec,
        schema: str,
    ) -> None:
        self._server = server
        self._addresses = addresses
        self._config = config
        self._window_ms = (spec.sliding_ttl or timedelta(0)) // timedelta(milliseconds=1)
        self._ages = spec.early_refresh_beta is not None
        self._tag = GENERATION + schema
        self._tokens = (f"{token_hex(6)}{number:x}" for number in count())
        self.address = addresses.of

    @property
    def on_outage(self) -> OnOutage:
        return "proceed"

    @property
    def max_value_bytes(self) -> int:
        return self._config.max_value_bytes

    @property
    def tenant_aware(self) -> bool:
        return self._addresses.tenant_aware

    @property
    def one_namespace(self) -> bool:
        return True

    def available(self, place: str | None = None) -> bool:
        return True

    def watch(self, tier: CacheInvalidation) -> None:
        self._server.watch(self._addresses.prefix, tier)

    def on_recovery(self, callback: Callable[[], None]) -> None:
        """Never called: what lives in the process is never away."""

    def owing(self, namespace: str, owes: bool) -> None:
        """Nothing is ever owed for long."""

    def token(self, address: str | None = None) -> str:
        return next(self._tokens)

    async def read(self, address: str, token: str) -> bytes | Aging | Miss:
        return (await self.read_many((address,), token))[0]

    async def read_many(self, addresses: Sequence[str], token: str) -> list[bytes | Aging | Miss]:
        await asyncio.sleep(0)
        return [self._read(address, token) for address in addresses]

    def _read(self, address: str, token: str) -> bytes | Aging | Miss:
        server, now = self._server, self._server.now()
        before = server.pointer(address, now)
        pointer, found = protocol.read(before, self._tag, token, now + LEASE_MS, now)
        if found is Read.HIT:
            assert isinstance(pointer, Value)
            return self._hit(address, pointer, now)
        if found is Read.LEASED:
            server.replace(address, pointer, now)
        return _MISSES[found]

    def _hit(self, address: str, pointer: Value, now: int) -> bytes | Aging:
        server = self._server
        body = server.body(address, pointer, now)
        assert body is not None
        if self._window_ms:
            server.prolong(address, pointer, self._window_ms, now)
        if self._ages and pointer.refresh is None and body.startswith(SEAL_MARK):
            return Aging(body, server.pointers.deadline(address) - now)
        return body

    async def read_large(self, address: str) -> bytes | None:
        await asyncio.sleep(0)
        now = self._server.now()
        before = self._server.pointer(address, now)
        pointer, found = protocol.read(before, self._tag, None, 0, now)
        return self._server.body(address, pointer, now) if found is Read.HIT else None

    async def inspect(self, address: str) -> Entry:
        server, now = self._server, self._server.now()
        pointer = protocol.prune(server.pointer(address, now), now)
        left = server.pointers.deadline(address) - now
        match pointer:
            case None:
                return Entry("absent")
            case Intent(ids):
                return Entry("intent", left, writers=len(ids))
            case Lease(tag=tag):
                return Entry("lease", left, same_schema=tag == self._tag)
        body = server.body(address, pointer, now)
        return Entry(
            "value",
            left,
            version=pointer.version,
            size_bytes=None if body is None else len(body),
            body_left_ms=server.bodies.deadline((address, pointer.version)) - now,
            refreshing=pointer.refresh is not None,
            same_generation=pointer.tag[:GENERATION_CHARS] == GENERATION,
            same_schema=pointer.tag[GENERATION_CHARS:] == self._tag[GENERATION_CHARS:],
        )

    async def elect(self, address: str, token: str) -> bool:
        await asyncio.sleep(0)
        server, now = self._server, self._server.now()
        before = server.pointer(address, now)
        pointer, won = protocol.elect(before, self._tag, token, now + LEASE_MS, now)
        if won:
            server.replace(address, pointer, now)
        return won

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        await asyncio.sleep(0)
        return [self._fill(each) for each in fills]

    def _fill(self, fill: Fill) -> bool:
        server, now = self._server, self._server.now()
        before = server.pointer(fill.address, now)
        pointer, stored = protocol.fill(before, self._tag, fill.token, str(fill.version), now)
        if stored:
            assert isinstance(pointer, Value)
            server.put(
                fill.address,
                pointer,
                fill.body,
                now,
                life_ms=fill.life_ms,
                window_ms=fill.window_ms,
            )
        return stored

    def renew(self, addresses: Sequence[str], token: str) -> None:
        now = self._server.now()
        until = now + LEASE_MS
        self._each(addresses, lambda each: protocol.renew(each, self._tag, token, until, now))

    def give_back(self, addresses: Sequence[str], token: str) -> None:
        now = self._server.now()
        self._each(addresses, lambda each: protocol.give_back(each, self._tag, token, now))

    async def intend(self, addresses: Sequence[str], write_id: str) -> None:
        await asyncio.sleep(0)
        now = self._server.now()
        deadline = now + INTENT_MS
        self._each(addresses, lambda each: protocol.intend(each, write_id, deadline, now))

    async def done(self, addresses: Sequence[str], write_id: str) -> None:
        await asyncio.sleep(0)
        now = self._server.now()
        self._each(addresses, lambda each: protocol.done(each, write_id, now))

    def _each(self, addresses: Sequence[str], transition: Callable[[Pointer], Pointer]) -> None:
        server, now = self._server, self._server.now()
        for address in addresses:
            server.replace(address, transition(server.pointer(address, now)), now)

    def namespace(self, address: str | None = None) -> str:
        return self._addresses.prefix

    async def clear(self, namespace: str) -> int:
        await asyncio.sleep(0)
        now, pointers = self._server.now(), self._server.pointers
        mine = [key for key in pointers.keys() if key.startswith(namespace)]  # noqa: SIM118
        there = [key for key in mine if pointers.get(key, now) is not None]
        for address in mine:
            self._server.replace(address, None, now)
        self._server.cleared(namespace)
        return len(there)
