"""The way of each call to the node of its slot, straight, and when a node sends it elsewhere.

A call that is redirected keeps its future and its deadline and goes to the other node's
connection, so that the straight way knows nothing of it.

::

    MOVED     the slot is another node's: there, and so is every later call
    ASK       this key is: there, behind ASKING, just this once
    TRYAGAIN  its keys are apart: here again, a little later

Redis Cluster specification, "Redirection and resharding".
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import get_running_loop
from time import monotonic
from typing import TYPE_CHECKING

from redis import exceptions as driver

from forze.errors import BackendUnavailable
from forze_redis.wire.connection import Call, Reply, late
from forze_redis.wire.pool import execute
from forze_redis.wire.scripts import pack
from forze_redis.wire.slots import SLOTS, slot_of

if TYPE_CHECKING:
    from forze_redis.wire.cluster import Cluster, Node

_ASKING = pack("ASKING")
_PATIENT_HOPS = 4
"""Redirections that are followed at once; further ones wait a little, the slots may settle."""

_HOPS = 16
_HOP_SECONDS = (0.01, 0.2)

_FOLLOWED = (driver.AskError, driver.TryAgainError)
"""And MOVED, which redis-py derives from ASK."""

_DOUBTFUL = (driver.MovedError, driver.ClusterDownError)


class Router:
    """The way of each call to its node: what a connection is to a single server.

    ``table`` has the node of each slot, None where nobody serves it.
    """

    __slots__ = ("_cluster", "_hops", "table")

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._hops: dict[asyncio.Future[Reply], int] = {}
        self.table: list[Node | None] = [None] * SLOTS

    def send(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """Queue one packed command on the connection of its node."""
        node = self.route(packed)
        if node is None:
            return self._cluster.unserved(packed, timeout)
        return node.connection.send(packed, timeout)

    def send_cached(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """:meth:`send`, unless the node is away: then the future has failed already."""
        node = self.route(packed)
        if node is None:
            return self._cluster.unserved(packed, timeout)
        if node.availability.away and node.loop is get_running_loop():
            return node.refused()
        return node.connection.send_cached(packed, timeout)

    def post(self, packed: bytes) -> None:
        """Queue one packed command whose reply nobody wants, where its node can take it."""
        node = self.route(packed)
        if node is not None and not node.availability.away:
            node.connection.post(packed)

    def route(self, packed: bytes) -> Node | None:
        """The node of a packed command; any that answers where no key is named."""
        slot = slot_of(packed)
        return self._cluster.any_node() if slot is None else self.table[slot]

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        for node in self._cluster.nodes:
            node.connection.disown()

    async def send_large(self, packed: bytes, timeout: float) -> Reply:
        """Send a command on a connection of its node's pool, redirections included."""
        deadline, hops = monotonic() + timeout, 0
        node, before = self.route(packed), None
        while True:
            if node is None or self._cluster.retired:
                raise self._cluster.nobody()
            try:
                return await execute(node.redis, packed, deadline - monotonic(), node.where, before)
            except BackendUnavailable as error:
                said = error.__cause__
                hops += 1
                if isinstance(said, _DOUBTFUL):
                    self._cluster.doubt()
                if not isinstance(said, _FOLLOWED) or hops > _HOPS or self._cluster.retired:
                    raise
            if hops > _PATIENT_HOPS or isinstance(said, driver.TryAgainError):
                await asyncio.sleep(_pause(hops))
            before = None
            if isinstance(said, driver.TryAgainError):
                node = self.route(packed)
            else:
                node = self._cluster.named(node, said.host, said.port)
                if isinstance(said, driver.MovedError):
                    self.table[said.slot_id] = node
                else:
                    before = _ASKING

    # -- calls that are sent elsewhere -----------------------------------------

    def redirect(self, node: Node, call: Call, said: str) -> bool:
        """Take a call that ``node`` sent elsewhere; whether there is somewhere to go."""
        word, _, rest = said.partition(" ")
        future, deadline, _ = call
        if word in ("MOVED", "CLUSTERDOWN"):
            self._cluster.doubt()
        if future is None or future.done():
            return True  # nobody waits
        if word == "CLUSTERDOWN" or self._cluster.retired:
            return False
        hops = self._hop(future)
        if hops > _HOPS and word == "TRYAGAIN":
            return False
        if hops > _HOPS:
            future.set_exception(self._cluster.nobody("its nodes send the call to each other"))
        elif deadline <= monotonic():
            future.set_exception(late(node.where, "none"))
        elif word == "TRYAGAIN":
            self._later(hops, call)
        else:
            slot, _, place = rest.partition(" ")
            host, _, port = place.rpartition(":")
            target = self._cluster.named(node, host, int(port))
            if word == "MOVED":
                self.table[int(slot)] = target
            if hops > _PATIENT_HOPS or (word == "ASK" and not target.connection.ready):
                self._later(hops, call)  # to the slot's owner: it knows best
            else:
                target.connection.take(call, _ASKING if word == "ASK" else None)
        return True

    def _hop(self, future: asyncio.Future[Reply]) -> int:
        hops = self._hops.get(future, 0) + 1
        if hops == 1:
            future.add_done_callback(self._arrived)
        self._hops[future] = hops
        return hops

    def _arrived(self, future: asyncio.Future[Reply]) -> None:
        self._hops.pop(future, None)

    def _later(self, hops: int, call: Call) -> None:
        pause = min(_pause(hops), max(0.0, call[1] - monotonic()))
        self._cluster.loop.call_later(pause, self.again, call, context=contextvars.Context())

    def again(self, call: Call) -> None:
        """Send a call to whoever serves its slot by now."""
        future, deadline, packed = call
        if future is None or future.done():
            return
        node = self.route(packed)
        if node is None or self._cluster.retired:
            future.set_exception(self._cluster.nobody())
        elif deadline <= monotonic():
            future.set_exception(late(node.where, "none"))
        else:
            node.connection.take(call)


def _pause(hops: int) -> float:
    shortest, longest = _HOP_SECONDS
    return float(min(longest, shortest * 2 ** max(0, hops - _PATIENT_HOPS)))
