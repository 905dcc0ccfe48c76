"""Idempotency records on a server: one hash each, one script per transition.

::

    {namespace}[/{tenant}][/{principal}]/{operation}/{key}            the record
    {namespace}[/{tenant}][/{principal}]/{operation}/{key}:changed    the channel that tells of it

The fields are ``state`` (pending, free, completed), ``payload`` (its hash), ``owner``,
``generation``, ``lease`` (milliseconds of the server's clock), and of an answer ``status``,
``head`` (content type and headers, JSON) and ``body``. The scripts carry out the transitions
of ``forze.application.integrations.idempotency.record``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from forze.application.contracts.deps import Resolver
from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.contracts.transaction import Transaction
from forze.application.integrations.idempotency.names import record_parts
from forze.application.integrations.idempotency.packing import head_of, snapshot_of
from forze.application.integrations.idempotency.port import StoredIdempotency
from forze.application.integrations.idempotency.record import (
    Answer,
    Busy,
    Completed,
    Granted,
    Mismatched,
)
from forze.application.integrations.idempotency.store import Told
from forze_redis.client import RedisClient
from forze_redis.config import RedisIdempotencyConfig
from forze_redis.keys import ResourceKeys
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.scripts import load_script

CLAIM = load_script("idempotency_claim")
BEAT = load_script("idempotency_beat")
COMPLETE = load_script("idempotency_complete")
RELEASE = load_script("idempotency_release")

_MILLISECOND = timedelta(milliseconds=1)


class RedisIdempotency(StoredIdempotency):
    """Operations that run once per key, across every process. Implements ``IdempotencyPort``."""

    def __init__(
        self,
        client: RedisClient,
        spec: IdempotencySpec,
        config: RedisIdempotencyConfig,
        resolver: Resolver,
    ) -> None:
        keys = ResourceKeys(client, config, f"idempotency {spec.name!r}")
        super().__init__(RedisIdempotencyStore(client, keys), spec, resolver)


class RedisIdempotencyStore:
    """Records on one server. Implements ``IdempotencyStore``."""

    __slots__ = ("_client", "_keys")

    def __init__(self, client: RedisClient, keys: ResourceKeys) -> None:
        self._client = client
        self._keys = keys

    def name(self, operation: str, key: str) -> str:
        """The record's key."""
        return self._keys.of(*record_parts(operation, key))

    def place(self) -> str | None:
        """The route, where there is a server for each."""
        return self._client.current_route()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[RedisIdempotencyStore]:
        """The store on the client of the current route, kept open."""
        async with self._client.hold() as here:
            yield RedisIdempotencyStore(here, self._keys)

    def transaction(self) -> Transaction | None:
        """None: a server has no part in a database's transactions."""
        return None

    async def claim(
        self, name: str, owner: str, payload_hash: str, lease: timedelta, retention: timedelta
    ) -> Answer:
        """One round trip."""
        args = (owner, payload_hash, lease // _MILLISECOND, retention // _MILLISECOND)
        word, *rest = await self._client.run(CLAIM, [name], args)
        match word:
            case b"busy":
                return Busy(int(rest[0]))
            case b"mismatch":
                return Mismatched()
            case b"completed":
                return Completed(snapshot_of(*rest, record=name, backend=BACKEND))
        return Granted(int(rest[0]), word.decode())

    async def beat(
        self, name: str, owner: str, generation: int, lease: timedelta, retention: timedelta
    ) -> bool:
        """One round trip."""
        args = (owner, generation, lease // _MILLISECOND, retention // _MILLISECOND)
        return bool(await self._client.run(BEAT, [name], args))

    async def complete(
        self,
        name: str,
        owner: str,
        generation: int,
        snapshot: IdempotencySnapshot,
        retention: timedelta,
    ) -> bool:
        """One round trip."""
        answer = (snapshot.status_code, head_of(snapshot), snapshot.body)
        args = (owner, generation, retention // _MILLISECOND, *answer)
        return bool(await self._client.run(COMPLETE, [name], args))

    async def release(self, name: str, owner: str, generation: int, retention: timedelta) -> bool:
        """One round trip."""
        args = (owner, generation, retention // _MILLISECOND)
        return bool(await self._client.run(RELEASE, [name], args))

    @asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[Told]:
        """Hear of changes of the record; one round trip for the first who does in a process."""
        told = Told()
        subscription = await self._client.subscribe(f"{name}:changed", lambda _: told.tell())
        try:
            yield told
        finally:
            subscription.close()

    async def check(self) -> None:
        """There is nothing to compare: records are made as they are needed."""
