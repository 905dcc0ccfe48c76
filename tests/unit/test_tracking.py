"""Which tiers are trusted, after whatever becomes of prefixes, streams and sources."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from math import inf
from random import Random
from time import monotonic
from typing import cast

import pytest

from forze.errors import BackendUnavailable, ConfigurationError
from forze_redis.wire.connection import Connection, Reply
from forze_redis.wire.tracking import Tracking

HEARTBEAT = 1.0


class Tier:
    """Remembers until when it is trusted."""

    until = 0.0

    def drop(self, keys: Iterable[str], *, pushed: bool = False) -> None: ...

    def flush(self) -> None: ...

    def trust(self, until: float, bound_seconds: float) -> None:
        self.until = until


class Server:
    """A connection whose questions are answered when the test says so."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Reply]] = []

    def ask(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def lose(self) -> None: ...


class World:
    """A tracking, and by itself what it should have made of what happened."""

    def __init__(self) -> None:
        self.tracking = Tracking()
        self.tiers: dict[str, list[Tier]] = {}
        self.servers: dict[str, Server] = {}
        self.live: dict[str, set[str]] = {}
        self.sources: set[str] = set()

    def follow(self, prefix: str) -> None:
        tier = Tier()
        self.tiers.setdefault(prefix, []).append(tier)
        self.tracking.follow(prefix, tier, push=True)

    async def begin(self, source: str) -> None:
        server = self.servers[source] = Server()
        self.live[source], prefixes = set(), set(self.tiers)
        beginning = asyncio.create_task(
            self.tracking.begin(source, cast(Connection, server), 1.0, HEARTBEAT)
        )
        await asyncio.sleep(0)
        self.check()  # before the server has answered
        for each in server.asked:
            each.set_result(b"OK")
        await beginning
        self.live[source] = prefixes

    def end(self, source: str) -> None:
        server = self.servers.pop(source)
        del self.live[source]
        self.tracking.end(cast(Connection, server))

    def rely_on(self, sources: set[str]) -> None:
        self.sources = sources
        self.tracking.rely_on(sources)
        if sources:
            for each in self.servers.keys() - sources:
                del self.servers[each], self.live[each]

    async def answer(self) -> None:
        """Whatever was asked meanwhile."""
        for source, server in self.servers.items():
            for each in server.asked:
                if not each.done():
                    each.set_result(b"OK")
            self.live[source] = set(self.tiers)
        await asyncio.sleep(0)

    def check(self) -> None:
        """A tick trusts who has a stream from every source, and nobody else."""
        for tier in chain(*self.tiers.values()):
            tier.until = 0.0
        self.tracking._grant(monotonic())
        complete = bool(self.servers) and self.sources <= self.servers.keys()
        for prefix, tiers in self.tiers.items():
            trusted = complete and all(prefix in each for each in self.live.values())
            assert [each.until > monotonic() for each in tiers] == [trusted] * len(tiers), prefix


@contextmanager
def ended(world: World) -> Iterator[None]:
    try:
        yield
    finally:
        world.tracking.end()


@pytest.mark.parametrize("seed", range(60))
async def test_trusted_is_who_hears_from_every_source(seed: int) -> None:
    dice, world = Random(seed), World()
    with ended(world):
        for _ in range(60):
            match dice.randrange(6):
                case 0:
                    world.follow(dice.choice("pqrs"))
                case 1:
                    await world.begin(dice.choice("abc"))
                case 2 if world.servers:
                    world.end(dice.choice(sorted(world.servers)))
                case 3:
                    world.rely_on(set(dice.sample("abc", dice.randrange(4))))
                case 4:
                    await world.answer()
            world.check()


async def test_a_refusal_leaves_tiers_to_their_own_lifetimes() -> None:
    world = World()
    with ended(world):
        world.follow("p")
        await world.begin("a")
        world.check()
        world.follow("q")
        (_, asked) = world.servers["a"].asked
        refused = ConfigurationError("no")
        refused.__cause__ = BackendUnavailable("NOPERM", backend="redis")
        asked.set_exception(refused)
        await asyncio.sleep(0)
        assert world.tracking.state == "refused"
        assert all(each.until == inf for each in chain(*world.tiers.values()))
        world.end("a")
        await world.begin("a")
        world.check()


async def test_a_tier_that_is_gone_is_not_kept() -> None:
    world = World()
    with ended(world):
        world.follow("p")
        world.follow("q")
        await world.begin("a")
        world.check()
        world.tiers["p"].clear()
        gc.collect()
        world.check()
        assert [len(tiers) for tiers in world.tracking._pushed.values()] == [0, 1]
