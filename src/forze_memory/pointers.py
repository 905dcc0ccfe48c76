"""The pointer operations of the read-through, on dictionaries.

Every transition is the function of ``protocol`` that also defines what the scripts of the
Redis cache do; here it runs as it is. What is added is where pointers and bodies are kept,
and for how long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from secrets import token_hex

from forze.application.contracts.cache import Fill, Miss, OnOutage
from forze.application.contracts.tenancy import require_tenant
from forze.application.integrations.document import protocol
from forze.application.integrations.document.protocol import (
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

    __slots__ = ("_clock", "bodies", "plain", "pointers")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.pointers: Keyspace[str, Pointer] = Keyspace()
        self.bodies: Keyspace[tuple[str, str], bytes] = Keyspace()
        self.plain: Keyspace[str, bytes] = Keyspace()

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

    def put(self, address: str, pointer: Value, body: bytes, life_ms: int, now: int) -> None:
        """Store a value's pointer and body for ``life_ms``."""
        self._place(address, pointer, now + life_ms, now)
        self.bodies.set((address, pointer.version), body, now + life_ms, now)

    def replace(self, address: str, pointer: Pointer, now: int, *, keep_body: bool = False) -> None:
        """Store what a transition made of the pointer, for as long as the state itself says."""
        match pointer:
            case None:
                self._drop_body(address, None, now, keep=keep_body)
                self.pointers.remove(address, now)
            case Lease(until=until):
                self._place(address, pointer, until, now)
            case Intent(ids):
                self._place(address, pointer, max(deadline for _, deadline in ids), now)
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
        schema: str,
    ) -> None:
        self._server = server
        self._addresses = addresses
        self._config = config
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

    def available(self) -> bool:
        return True

    def on_recovery(self, callback: Callable[[], None]) -> None:
        """Never called: what lives in the process is never away."""

    def token(self) -> str:
        return next(self._tokens)

    async def read(self, address: str, token: str) -> bytes | Miss:
        return (await self.read_many((address,), token))[0]

    async def read_many(self, addresses: Sequence[str], token: str) -> list[bytes | Miss]:
        await asyncio.sleep(0)
        return [self._read(address, token) for address in addresses]

    def _read(self, address: str, token: str) -> bytes | Miss:
        server, now = self._server, self._server.now()
        before = server.pointer(address, now)
        pointer, found = protocol.read(before, self._tag, token, now + LEASE_MS, now)
        if found is Read.HIT:
            body = server.body(address, pointer, now)
            assert body is not None
            return body
        if found is Read.LEASED:
            server.replace(address, pointer, now)
        return _MISSES[found]

    async def read_large(self, address: str) -> bytes | None:
        await asyncio.sleep(0)
        now = self._server.now()
        before = self._server.pointer(address, now)
        pointer, found = protocol.read(before, self._tag, None, 0, now)
        return self._server.body(address, pointer, now) if found is Read.HIT else None

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        await asyncio.sleep(0)
        return [self._fill(each) for each in fills]

    def _fill(self, fill: Fill) -> bool:
        server, now = self._server, self._server.now()
        before = server.pointer(fill.address, now)
        pointer, stored = protocol.fill(before, self._tag, fill.token, str(fill.version), now)
        if stored:
            assert isinstance(pointer, Value)
            server.put(fill.address, pointer, fill.body, fill.life_ms, now)
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
        return len(there)
