"""The Redis counter: plain ``INCRBY`` where it suffices, a script for bounds and operation ids.

::

    {namespace}[/{tenant}][/{suffix}]         the value
    {namespace}[/{tenant}][/{suffix}]!{id}    what an operation answered

Encoded parts hold no ``!``, so no suffix spells the record of an operation. Integers travel
as the server's own or as text: nothing here ever is a float.
"""

from __future__ import annotations

import re
from collections.abc import Hashable

from forze.application.contracts.counter import INT64_MAX, INT64_MIN, CounterSpec
from forze.application.contracts.deps import Resolver
from forze.application.integrations.counting import Change, Counting, Operation
from forze.application.integrations.keys import encode_part
from forze.errors import BackendCorrupt, ForzeError
from forze_redis.client import RedisClient
from forze_redis.config import RedisCounterConfig
from forze_redis.keys import ResourceKeys
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.scripts import load_script

COUNT = load_script("count")

_is_integer = re.compile(rb"0|-?[1-9][0-9]{0,18}").fullmatch
_OVERFLOW = "would overflow"
_NO_INTEGER = "not an integer"


class RedisCounter(Counting):
    """Counters on a server. Implements ``CounterPort``."""

    def __init__(
        self,
        client: RedisClient,
        spec: CounterSpec,
        config: RedisCounterConfig,
        resolver: Resolver,
    ) -> None:
        super().__init__(spec, resolver)
        self._client = client
        self._keys = ResourceKeys(client, config, f"counter {spec.name!r}")

    def _address(self, suffix: str | None) -> str:
        parts = () if suffix is None else (encode_part(suffix, "suffix"),)
        return self._keys.of(*parts)

    def _scope(self, suffix: str | None) -> Hashable:
        return self._address(suffix), self._client.current_route()

    async def _add(
        self, address: str, suffix: str | None, change: Change, operation: Operation | None
    ) -> int:
        try:
            if operation is None and not self._bounded:
                value: int = await self._client.call("INCRBY", address, change.by)
                return value
            return await self._scripted(address, suffix, change, operation)
        except BackendCorrupt as error:
            raise self._explained(error, suffix, change) from error

    async def _scripted(
        self, address: str, suffix: str | None, change: Change, operation: Operation | None
    ) -> int:
        keys, what = [address], ""
        if operation is not None:
            keys.append(f"{address}!{encode_part(operation.id, 'operation_id')}")
            what = operation.what
        limit = "" if change.limit is None else change.limit
        verdict, text = await self._client.run(
            COUNT, keys, (change.by, limit, what, self._operation_ms)
        )
        if verdict == 0:
            raise self._beyond(suffix, change, int(text))
        if verdict == 3 and operation is not None:
            raise self._other_operation(suffix, operation, text.decode())
        return int(text)

    async def _set(self, address: str, value: int) -> None:
        await self._client.call("SET", address, value)

    async def _read(self, address: str, suffix: str | None) -> int:
        stored = await self._client.call("GET", address)
        if stored is None:
            return 0
        if _is_integer(stored) and INT64_MIN <= (value := int(stored)) <= INT64_MAX:
            return value
        raise self._corrupt(suffix)

    def _explained(self, error: BackendCorrupt, suffix: str | None, change: Change) -> ForzeError:
        """The error of a counter for what the server said, which wrote nothing."""
        said = str(error.__cause__)
        if _OVERFLOW in said:
            return self._beyond(suffix, change, None)
        return self._corrupt(suffix) if _NO_INTEGER in said else error

    def _corrupt(self, suffix: str | None) -> BackendCorrupt:
        return BackendCorrupt(
            f"{self._named(suffix)}: what is stored under its key is no 64-bit integer; somebody "
            "else writes under this namespace: give it another one, or reset() the counter",
            backend=BACKEND,
        )
