"""What the server was sent, by its own count."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import redis.asyncio

SCRIPTS = ("evalsha", "eval", "fcall")
"""The commands our cache sends. What a script runs inside the server is counted by the
server too, under its own name, and costs no round trip."""


@dataclass
class Sent:
    """Commands the server received between two looks, by name."""

    scripts: int = 0
    gets: int = 0


async def look(client: redis.asyncio.Redis) -> Sent:
    """The counts so far, from ``INFO commandstats``."""
    stats = await client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
    return Sent(sum(calls.get(name, 0) for name in SCRIPTS), calls.get("get", 0))


@asynccontextmanager
async def counted(client: redis.asyncio.Redis) -> AsyncIterator[Sent]:
    """Fills in, at the end of the block, what was sent during it."""
    sent, before = Sent(), await look(client)
    yield sent
    after = await look(client)
    sent.scripts, sent.gets = after.scripts - before.scripts, after.gets - before.gets
