"""Every key that matches a glob pattern, removed without holding anything up.

What is asked, and when, is one generator for both sorts of client: it yields commands and is
sent their replies. SCAN finds what is there from its beginning to its end; what it finds is
removed with UNLINK, a batch at a time, before it goes on. On a cluster that is done on every
primary, one after the other, and each key is removed by a command of its own (the keys of one
command must share a slot), a batch in one round trip. What a resharding moves meanwhile from a
primary that was not looked at yet to one that was is missed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from redis.client import NEVER_DECODE

BATCH = 1000
_CLUSTER_BATCH = 100
_KEYS_AS_BYTES: dict[str, Any] = {NEVER_DECODE: []}
"""They need not be text."""

K = TypeVar("K")
Commands: TypeAlias = list[tuple[Any, ...]]
Asked: TypeAlias = tuple[Any, Commands]
"""A node of a cluster (None: there is one server), and what it is asked; of a cluster with None
in place of the node each command goes where its key is."""


def batches(keys: Sequence[K], size: int = BATCH) -> list[Sequence[K]]:
    """``keys``, at most ``size`` at a time."""
    return [keys[at : at + size] for at in range(0, len(keys), size)]


def removal(pattern: str | bytes, primaries: Sequence[Any] | None) -> Generator[Asked, Any, int]:
    """Yields what to ask, is sent the reply, and returns how many keys were removed.

    ``primaries`` are those of a cluster, None for a single server. Sent None, because there was
    no answer, it ends with what was removed until then.
    """
    removed, size = 0, BATCH if primaries is None else _CLUSTER_BATCH
    for node in (None,) if primaries is None else primaries:
        cursor: Any = 0
        while True:
            found = yield node, [("SCAN", cursor, "MATCH", pattern, "COUNT", size)]
            if found is None:
                return removed
            cursor, keys = found
            if isinstance(cursor, dict):  # of a cluster: by the node's name
                cursor = next(iter(cursor.values()))
            for batch in batches(keys, size):
                apart = [("UNLINK", key) for key in batch]
                gone = yield None, [("UNLINK", *batch)] if primaries is None else apart
                if gone is None:
                    return removed
                removed += sum(gone)
            if int(cursor) == 0:
                break
    return removed


def asked_of(client: Any, node: Any, commands: Commands) -> Any:
    """The reply to a SCAN, else a list of them; of an asyncio client what is awaited for it."""
    if commands[0][0] == "SCAN":
        target = {} if node is None else {"target_nodes": node}
        return client.execute_command(*commands[0], **target, **_KEYS_AS_BYTES)
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline.execute()


async def remove_matching_async(
    client: Any, pattern: str | bytes, ask: Callable[..., Awaitable[Any]] = asked_of
) -> int:
    """Drive :func:`removal` on a redis-py asyncio client; how many keys are gone.

    ``ask`` is :func:`asked_of`, or gives None where that failed.
    """
    primaries = None
    if hasattr(client, "get_primaries"):
        await client.initialize()
        primaries = client.get_primaries()
    work = removal(pattern, primaries)
    reply: Any = None
    while True:
        try:
            asked = work.send(reply)
        except StopIteration as done:
            return int(done.value)
        reply = await ask(client, *asked)


def remove_matching_sync(client: Any, pattern: str | bytes) -> int:
    """The blocking twin."""
    primaries = client.get_primaries() if hasattr(client, "get_primaries") else None
    work = removal(pattern, primaries)
    reply: Any = None
    while True:
        try:
            asked = work.send(reply)
        except StopIteration as done:
            return int(done.value)
        reply = asked_of(client, *asked)
