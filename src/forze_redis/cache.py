"""The Redis cache: direct values (:class:`RedisCache`) and pointers (:class:`RedisPointers`).

Each method is one script call, one round trip; calls on many keys are cut into batches. On a
cluster different keys are in different slots, so each has a call of its own, sent together.
No policy and no time here: what a state means is in
``forze.application.integrations.document.protocol``, and the scripts in ``lua/`` carry
the same transitions out on the server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import count
from secrets import token_hex
from typing import Any, TypeVar

from forze.application.contracts.cache import (
    Aging,
    CacheInvalidation,
    CacheSpec,
    Entry,
    Fill,
    Miss,
    OnOutage,
)
from forze.application.contracts.deps import Resolver
from forze.application.integrations.direct_cache import DIRECT, DirectCache
from forze.application.integrations.document.protocol import (
    GENERATION_CHARS,
    INTENT_MS,
    LEASE_MS,
)
from forze.errors import BackendCorrupt, BackendError, BackendUnavailable
from forze_redis.client import RedisClient
from forze_redis.config import RedisCacheConfig
from forze_redis.keys import POINTER, CacheKeys, plain_of
from forze_redis.scan import remove_all
from forze_redis.wire.handshake import UNKNOWN_GENERATION
from forze_redis.wire.link import Incarnation
from forze_redis.wire.scripts import Script, load_script, pack

T = TypeVar("T")

KEYS_PER_CALL = 100
SHARED_LIMIT_BYTES = 256 * 1024
"""Replies above this go over a connection of their own."""

LARGE_FILL_BYTES = SHARED_LIMIT_BYTES // 2
"""So do fills above this: with its arguments a call stays below what the connection takes."""

LARGE_SECONDS = 0.25
"""How long a large body may take on its own connection."""

READ = load_script("read")
READ_LARGE = load_script("read_large")
INSPECT = load_script("inspect")
FILL = load_script("fill")
FILL_LARGE = load_script("fill_large")
ELECT = load_script("elect")
LEASE = load_script("lease")
INTEND = load_script("intend")
DONE = load_script("done")
GET = load_script("get")
PUT = load_script("put")
SET = load_script("set")
REMOVE = load_script("remove")

_MISSES = {1: Miss.LEASED, 2: Miss.HELD, 3: Miss.INTENT, 4: Miss.LARGE}
_LEASE_MS = str(LEASE_MS)
_LIMIT = str(SHARED_LIMIT_BYTES)
_GLOB = re.compile(r"[][*?\\]")
_WRITE = re.compile(rb":(\d+);")
_NOBODY = Incarnation(UNKNOWN_GENERATION)


class RedisPointers:
    """Pointer operations for readers of one schema. Implements ``PointerCache``."""

    def __init__(
        self,
        client: RedisClient,
        keys: CacheKeys,
        config: RedisCacheConfig,
        spec: CacheSpec,
        schema: str,
        *,
        prefix: str | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._config = config
        self._schema = schema
        self._count = count()
        self._how = (_LEASE_MS, _LIMIT, *_asked(spec))
        self._head = READ.head(1, 2 + len(self._how))
        self._tail = "".join(f"\r\n${len(each)}\r\n{each}" for each in self._how) + "\r\n"
        self._send = client.send_cached
        self.address = keys.pointer
        self._one: _Identity | None = None
        self._identify()
        if prefix is not None:
            self._prefix = prefix  # of tokens given out before there was a connection
        client.on_reconnect(self._identify)

    def _identify(self, *_: object) -> None:
        """A new connection: tokens of the old one hold nothing, the generation may be another."""
        self._prefix = token_hex(6)
        server = self._client.incarnation()
        self._one = None if server is None else _Identity(server.generation + self._schema)

    def _identity(self, address: str) -> _Identity:
        """In whose name ``address`` is asked for: of the one server there is, or of its node."""
        if self._one is not None:
            return self._one
        server = self._client.incarnation(address) or _NOBODY
        identity: _Identity | None = server.known_as.get(self._schema)
        if identity is None:
            identity = _Identity(server.generation + self._schema)
            server.known_as[self._schema] = identity
        return identity

    def _batches(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        return _batches(items, 1 if self._client.clustered else KEYS_PER_CALL)

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
        return not callable(self._config.namespace)

    def available(self, place: str | None = None) -> bool:
        return self._client.available(None if place is None or POINTER not in place else place)

    def on_recovery(self, callback: Callable[[], None]) -> None:
        self._client.on_recovery(callback)

    def owing(self, namespace: str, owes: bool) -> None:
        """The client stays connected in any case."""

    def token(self, address: str | None = None) -> str:
        return f"{self._prefix}{next(self._count):x}"

    async def read(self, address: str, token: str) -> bytes | Aging | Miss:
        # The hottest line there is: joined by hand, cheaper than packing eight arguments.
        mine = self._one or self._identity(address)
        reply = await self._send(
            f"{self._head}${len(address)}\r\n{address}{mine.read_tag}{len(token)}\r\n{token}"
            f"{self._tail}".encode()
        )
        if mine is not (self._one or self._identity(address)):
            raise _another_server()
        return reply if reply.__class__ is bytes else _other(reply)

    async def read_many(self, addresses: Sequence[str], token: str) -> list[bytes | Aging | Miss]:
        """What some nodes of a cluster do not answer is ``AWAY``; without any answer it raises."""
        if not self._client.clustered and 0 < len(addresses) <= KEYS_PER_CALL:
            return await self._read_together(addresses, token)
        asked = [(keys, self._identity(keys[0])) for keys in self._batches(addresses)]
        replies = await asyncio.gather(
            *(
                self._client.run_cached(READ, keys, (its.tag, token, *self._how))
                for keys, its in asked
            ),
            return_exceptions=True,
        )
        found: list[bytes | Aging | Miss] = []
        failed: list[BaseException] = []
        for (keys, its), reply in zip(asked, replies, strict=True):
            answer = reply if its is self._identity(keys[0]) else _another_server()
            if isinstance(answer, BaseException):
                failed.append(answer)
                self.give_back(keys, token)
                found += [Miss.AWAY] * len(keys)
            else:
                each = answer if len(keys) > 1 else (answer,)
                found += [one if one.__class__ is bytes else _other(one) for one in each]
        for error in failed:
            alone = not self._client.clustered or len(failed) == len(asked)
            if alone or not isinstance(error, BackendError):
                raise error
        return found

    async def _read_together(
        self, addresses: Sequence[str], token: str
    ) -> list[bytes | Aging | Miss]:
        """In one command."""
        mine = self._one or self._identity(addresses[0])
        try:
            reply = await self._client.run_cached(READ, addresses, (mine.tag, token, *self._how))
            if mine is not (self._one or self._identity(addresses[0])):
                raise _another_server()
        except BaseException:
            self.give_back(addresses, token)
            raise
        answers = reply if len(addresses) > 1 else (reply,)
        return [each if each.__class__ is bytes else _other(each) for each in answers]

    async def read_large(self, address: str) -> bytes | None:
        reply = await self._client.call_large(
            "EVALSHA",
            READ_LARGE.sha1,
            1,
            address,
            self._identity(address).tag,
            timeout=LARGE_SECONDS,
        )
        return reply if isinstance(reply, bytes) else None

    async def inspect(self, address: str) -> Entry:
        reply = await self._client.run_cached(INSPECT, (address,))
        return _entry(reply, self._identity(address).tag.encode())

    async def elect(self, address: str, token: str) -> bool:
        if not token.startswith(self._prefix):
            return False  # it could not fill
        tag = self._identity(address).tag
        return bool(await self._client.run_cached(ELECT, (address,), (tag, token, _LEASE_MS)))

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        prefix = self._prefix
        held = [each for each in fills if each.token.startswith(prefix)]
        stored: dict[str, bool] = {}
        for batch in _by_bytes(held):
            if len(batch[0].body) > LARGE_FILL_BYTES:
                stored[batch[0].address] = await self._fill_large(batch[0])
                continue
            stored |= await self._fill(batch)
        # Accepted by a server that came after the lease, a fill proves nothing.
        return [stored.get(each.address, False) and prefix is self._prefix for each in fills]

    async def _fill(self, fills: Sequence[Fill]) -> dict[str, bool]:
        """One call for all; on a cluster one for each, sent together."""
        stored: dict[str, bool] = {}
        batches = list(self._batches(fills))
        calls = [
            self._client.run_cached(
                FILL,
                [each.address for each in batch],
                (
                    self._identity(batch[0].address).tag,
                    *(part for each in batch for part in _stored(each)),
                ),
            )
            for batch in batches
        ]
        if len(calls) == 1:  # to gather it would take another turn of the event loop
            replies = [await calls[0]]
        else:
            replies = await asyncio.gather(*calls, return_exceptions=True)
        for batch, answer in zip(batches, replies, strict=True):
            if not isinstance(answer, BaseException):
                stored |= {each.address: bool(ok) for each, ok in zip(batch, answer, strict=True)}
            elif not isinstance(answer, BackendError):
                raise answer
        return stored

    async def _fill_large(self, fill: Fill) -> bool:
        arguments = (fill.address, self._identity(fill.address).tag, *_stored(fill))
        return bool(
            await self._client.call_large(
                "EVALSHA", FILL_LARGE.sha1, 1, *arguments, timeout=LARGE_SECONDS
            )
        )

    def renew(self, addresses: Sequence[str], token: str) -> None:
        self._unawaited(addresses, token, _LEASE_MS)

    def give_back(self, addresses: Sequence[str], token: str) -> None:
        self._unawaited(addresses, token, "0")

    def _unawaited(self, addresses: Sequence[str], token: str, milliseconds: str) -> None:
        if not token.startswith(self._prefix):
            return  # taken on a connection that is gone: worthless, and lapsing
        for keys in self._batches(addresses):
            tag = self._identity(keys[0]).tag
            self._client.post(
                pack("EVALSHA", LEASE.sha1, len(keys), *keys, tag, token, milliseconds)
            )

    def intend(self, addresses: Sequence[str], write_id: str) -> Awaitable[None]:
        return self._tell(INTEND, addresses, (write_id, INTENT_MS))

    def done(self, addresses: Sequence[str], write_id: str) -> Awaitable[None]:
        return self._tell(DONE, addresses, (write_id,))

    def _tell(
        self, script: Script, addresses: Sequence[str], args: Sequence[Any]
    ) -> Awaitable[Any]:
        """Send now; what comes back is awaited for the answer to all of it."""
        if len(addresses) == 1:
            return self._client.change(script, addresses, args)
        batches = self._batches(addresses)
        return asyncio.gather(*(self._client.change(script, keys, args) for keys in batches))

    def namespace(self, address: str | None = None) -> str:
        prefix = self._keys.prefix() if address is None else address
        return prefix[: prefix.index(POINTER)]

    async def clear(self, namespace: str) -> int:
        pattern = _GLOB.sub(r"\\\g<0>", namespace + POINTER) + "*"
        self._client.tracking.cleared(namespace)
        try:
            return await remove_all(self._client, pattern)
        finally:
            self._client.tracking.cleared(namespace)

    def watch(self, tier: CacheInvalidation) -> None:
        prefix = self._keys.prefix() if self.one_namespace else None
        self._client.tracking.follow(prefix, tier, push=self._config.invalidation_push)


Pair = tuple[str, str]
"""Where an entry is kept: its pointer key and its plain key."""


class RedisCache(DirectCache[Pair]):
    """A cache for direct use. Implements ``CachePort``."""

    def __init__(
        self, client: RedisClient, spec: CacheSpec, config: RedisCacheConfig, resolver: Resolver
    ) -> None:
        super().__init__(spec, resolver, max_value_bytes=config.max_value_bytes)
        self._client = client
        self._config = config
        self._keys = CacheKeys(
            client,
            config.namespace,
            tenant_aware=config.tenant_aware,
            resource=f"cache {spec.name!r}",
        )

    def pointers(self, fingerprint: str) -> RedisPointers:
        return RedisPointers(self._client, self._keys, self._config, self._spec, fingerprint)

    def _address(self, key: str) -> Pair:
        pointer = self._keys.pointer(key)
        return pointer, plain_of(pointer)

    def _pointer(self, address: Pair) -> str:
        return address[0]

    async def _load(self, addresses: Sequence[Pair]) -> list[bytes | None]:
        """Large values are fetched apart, one by one. What was asked of a server that has been
        replaced meanwhile is not there."""
        asked = [self._server(pair) for pair in addresses]
        replies = await self._each(
            GET, addresses, lambda pairs: (self._server(pairs[0]).generation, _LIMIT)
        )
        for at, reply in enumerate(replies):
            if reply == 4:
                generation = asked[at].generation
                (replies[at],) = await self._client.call_large(
                    "EVALSHA", GET.sha1, 2, *addresses[at], generation, "0"
                )
        return [
            reply if server is self._server(pair) else None
            for reply, server, pair in zip(replies, asked, addresses, strict=True)
        ]

    def _server(self, pair: Pair) -> Incarnation:
        return self._client.incarnation(pair[0]) or _NOBODY

    async def _store(self, bodies: Mapping[Pair, bytes], life_ms: int) -> None:
        await self._each(
            SET, list(bodies), lambda pairs: (life_ms, *(bodies[pair] for pair in pairs))
        )

    async def _put(self, entries: Sequence[tuple[Pair, str, bytes]], life_ms: int) -> list[bool]:
        def put(batch: Sequence[tuple[Pair, str, bytes]]) -> Awaitable[Any]:
            tag = self._server(batch[0][0]).generation + DIRECT
            args = [part for _, version, body in batch for part in (version, body)]
            pointers = [pair[0] for pair, _, _ in batch]
            return self._client.change(PUT, pointers, (tag, life_ms, *args))

        return [bool(each) for each in await self._in_batches(entries, put)]

    async def _remove(self, addresses: Sequence[Pair], *, hard: bool = True) -> list[bool]:
        replies = await self._each(REMOVE, addresses, lambda _: ("1" if hard else "0",))
        return [bool(each) for each in replies]

    async def _each(
        self,
        script: Script,
        pairs: Sequence[Pair],
        args: Callable[[Sequence[Pair]], Sequence[Any]],
    ) -> list[Any]:
        """Run ``script`` over batches of pairs; the replies of all, in order."""
        run = self._client.run_cached if script is GET else self._client.change

        def call(batch: Sequence[Pair]) -> Awaitable[Any]:
            return run(script, [key for pair in batch for key in pair], args(batch))

        return await self._in_batches(pairs, call)

    async def _in_batches(
        self, items: Sequence[T], call: Callable[[Sequence[T]], Awaitable[Any]]
    ) -> list[Any]:
        """The replies of all, in order: batch after batch, or each by itself on a cluster."""
        if self._client.clustered:
            answers = await asyncio.gather(*map(call, _batches(items, 1)))
        else:
            answers = [await call(batch) for batch in _batches(items, KEYS_PER_CALL)]
        return [
            reply
            for answer in answers
            for reply in (answer if isinstance(answer, list) else (answer,))
        ]


class _Identity:
    """In whose name readers of one schema ask one server: its generation, and their schema."""

    __slots__ = ("read_tag", "tag")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.read_tag = f"\r\n${len(tag)}\r\n{tag}\r\n$"


def _another_server() -> BackendUnavailable:
    """The error of a read that waited while the connection was replaced: its question was put
    in the name of the server that was, and the answer may be older than what that one knew."""
    return BackendUnavailable(
        "the connection was replaced while a cache read waited for it; its answer is not used",
        backend="redis",
    )


def _asked(spec: CacheSpec) -> tuple[str, ...]:
    """What a read asks for beyond the body: the window, and what ages. Most ask for nothing."""
    if spec.sliding_ttl is None and spec.early_refresh_beta is None:
        return ()
    window = (spec.sliding_ttl or timedelta(0)) // timedelta(milliseconds=1)
    return str(window), "0" if spec.early_refresh_beta is None else "1"


def _stored(fill: Fill) -> tuple[Any, ...]:
    """The arguments of one fill."""
    return fill.token, str(fill.version), fill.body, fill.life_ms, fill.window_ms


def _other(reply: object) -> Aging | Miss:
    """What a read answered that is no bare body."""
    try:
        if isinstance(reply, list):
            return Aging(*reply)
        return _MISSES[reply]  # type: ignore[index]
    except (KeyError, TypeError):
        raise BackendCorrupt(
            f"the script 'read' answered {reply!r}; is something between us and the server "
            "changing replies?",
            backend="redis",
        ) from None


def _entry(reply: Any, mine: bytes) -> Entry:
    """What the script 'inspect' answered readers whose tag is ``mine``."""
    if reply is None:
        return Entry("absent")
    pointer, left_ms, now, *body = reply
    state, tag, rest = pointer[:1], pointer[1 : 1 + len(mine)], pointer[1 + len(mine) :]
    if state == b"I":
        writers = sum(int(deadline) > now for deadline in _WRITE.findall(pointer))
        return Entry("intent" if writers else "absent", left_ms, writers=writers)
    same_generation = tag[:GENERATION_CHARS] == mine[:GENERATION_CHARS]
    same_schema = tag[GENERATION_CHARS:] == mine[GENERATION_CHARS:]
    if state == b"L":
        return Entry("lease", left_ms, same_generation=same_generation, same_schema=same_schema)
    until = b"0"
    if state == b"R":
        _, until, rest = rest.split(b":", 2)
    size, body_left_ms = body or (None, 0)
    return Entry(
        "value",
        left_ms,
        version=rest.decode(errors="replace"),
        size_bytes=size,
        body_left_ms=body_left_ms,
        refreshing=int(until) > now,
        same_generation=same_generation,
        same_schema=same_schema,
    )


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _by_bytes(fills: Sequence[Fill]) -> Iterator[list[Fill]]:
    """Batches of at most a hundred keys that together stay on the shared connection."""
    batch: list[Fill] = []
    size = 0
    for fill in fills:
        if batch and (len(batch) == KEYS_PER_CALL or size + len(fill.body) > LARGE_FILL_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(fill)
        size += len(fill.body)
    if batch:
        yield batch
