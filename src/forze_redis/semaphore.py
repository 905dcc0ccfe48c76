"""Semaphores on the server: the ends of their holders' leases in one sorted set.

::

    {semaphore}           {owner: end}       who has a permit, until when
    {semaphore}:tokens    {owner: token}     and under which token
    {semaphore}:fence     token              the last one given; no TTL, never deleted

The line beside them is that of a lock (``forze_redis.dlock``).
"""

from __future__ import annotations

from collections.abc import Sequence

from forze.application.contracts.dlock import SemaphoreSpec
from forze.application.integrations.locks.names import encode_name
from forze.application.integrations.locks.store import Granted, Look, Refused
from forze_redis.client import RedisClient
from forze_redis.config import RedisDistributedLockConfig
from forze_redis.dlock import WAITER_MS, Opened, RedisStored, answered, lease_ms, looked
from forze_redis.keys import ResourceKeys
from forze_redis.wire.scripts import load_script

ACQUIRE = load_script("semaphore_acquire")
EXTEND = load_script("semaphore_extend")
RELEASE = load_script("semaphore_release")
WAIT = load_script("semaphore_wait")
HELD = load_script("semaphore_held")


class RedisSemaphores:
    """The semaphores of one resource. Implements ``LockStore``."""

    def __init__(
        self, client: RedisClient, config: RedisDistributedLockConfig, spec: SemaphoreSpec
    ) -> None:
        self._client = client
        self._keys = ResourceKeys(client, config, f"semaphore {spec.name!r}")
        self._lease_ms = lease_ms(spec.ttl)
        self._permits = spec.permits

    def open(self, key: str, *, shared: bool = False) -> Opened[RedisSemaphore]:
        name = self._keys.of(encode_name(key))
        return Opened(
            self._client.hold(),
            lambda here: RedisSemaphore(here, name, self._lease_ms, self._permits),
        )


class RedisSemaphore(RedisStored):
    """One semaphore. Implements ``CountedPermits``; each call is one round trip.

    An owner is made for one acquisition, so it says as much as a token would.
    """

    def __init__(self, client: RedisClient, name: str, lease_ms: int, permits: int) -> None:
        super().__init__(client, name, lease_ms)
        self._permits = permits
        self._state = name, f"{name}:tokens"

    async def attempt(self, owner: str, *, waits: bool) -> Granted | Refused:
        return answered(
            await self._client.run(
                ACQUIRE,
                (*self._state, self._fence, *self._line),
                (owner, self._permits, self._lease_ms, WAITER_MS if waits else 0),
            )
        )

    async def extend(self, owner: str, token: int | None) -> bool:
        return bool(await self._client.run(EXTEND, self._state, (owner, self._lease_ms)))

    async def release(self, owner: str, token: int | None) -> bool:
        keys = *self._state, *self._line, self._turns
        return bool(await self._client.run(RELEASE, keys, (owner, self._permits)))

    async def look(self, owners: Sequence[str]) -> Look:
        keys = *self._state, *self._line, self._turns
        return looked(await self._client.run(WAIT, keys, (self._permits, WAITER_MS, *owners)))

    async def held(self) -> int:
        taken: int = await self._client.run(HELD, self._state[:1])
        return taken
