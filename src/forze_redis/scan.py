"""Every key that matches a pattern, on every server there is.

SCAN promises to find what is there from its beginning to its end, on one server. What moves
from a server that was not looked at yet to one that was is missed, so where slots of a cluster
have moved meanwhile it is done again, and where they are about to, or are with a server that
the client has yet to hear of, it is not done at all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from forze.errors import BackendUnavailable
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.slots import settled

if TYPE_CHECKING:
    from forze_redis.client import Primary, RedisClient

_PASSES = 4
_COUNT = 1000


async def remove_all(client: RedisClient, pattern: str) -> int:
    """Remove what was there when it was called and matches ``pattern``; how many keys.

    Raises ``BackendUnavailable`` where a server is away, or slots do not stop moving: some keys
    may be left. Round trips: two for a thousand keys of each server, one server after the other.
    """
    removed, before = 0, await client.layout()
    for _ in range(_PASSES):
        primaries = client.primaries()
        if client.clustered and not settled(before):
            break
        if not all(each.available() for each in primaries):
            break
        for each in primaries:
            removed += await _remove(client, each, pattern)
        after = await client.layout()
        if after == before:
            return removed
        before = after
    raise BackendUnavailable(
        f"not every key of {pattern!r} could be removed: a server is away, or slots of the cluster "
        "are on the move; try again when that is over",
        backend=BACKEND,
    )


async def _remove(client: RedisClient, primary: Primary, pattern: str) -> int:
    removed, cursor = 0, b"0"
    while True:
        cursor, keys = await primary.call("SCAN", cursor, "MATCH", pattern, "COUNT", _COUNT)
        if keys and client.clustered:
            removed += sum(await asyncio.gather(*(client.call("UNLINK", key) for key in keys)))
        elif keys:
            removed += await primary.call("UNLINK", *keys)
        if cursor == b"0":
            return removed
