"""The nodes of a cluster, each with a link of its own, and who serves which slot.

::

    client ──► Router ── slot of the first key ──► Node (a Link) ──► its connection
                                                    │ MOVED, ASK, TRYAGAIN
    views of the nodes ──► Cluster: who serves what ◄┘

Who serves what is asked anew after a redirection, when a link is lost or cannot be made, and
at every heartbeat, by one task.

A node that is away is away by itself: it has its own breaker and its own queue, which goes to
whoever serves its slots next.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from asyncio import get_running_loop
from hashlib import sha1
from time import monotonic
from typing import TypeAlias

from redis.asyncio.cluster import RedisCluster

from forze.errors import BackendUnavailable, ConfigurationError, ForzeError
from forze_redis.wire.availability import Availability
from forze_redis.wire.config import RedisConfig, seconds
from forze_redis.wire.connection import Call, Connection, Reply, gone
from forze_redis.wire.dsn import Endpoint
from forze_redis.wire.handshake import UNKNOWN_GENERATION
from forze_redis.wire.link import Elsewhere, Incarnation, Link, Listeners, backoff, shielded
from forze_redis.wire.pool import open_cluster_pool
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.routing import Router
from forze_redis.wire.slots import SLOTS, Range, slot_of_key
from forze_redis.wire.views import View, newest, node_at, seeds_of, view_at, view_over

_log = logging.getLogger("forze.redis")

_ASKED_AT_ONCE = 3
_ANSWER_SECONDS = 0.5
_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.5
"""Between two questions, where slots seem to have moved."""

_GUEST_SECONDS = 60.0
"""How long a node is kept that serves no slot, but was asked for one on the move."""

Place: TypeAlias = tuple[str, int]


class Shape:
    """What is known of a cluster beyond the life of its links."""

    def __init__(self, availability: Availability) -> None:
        self.ranges: tuple[Range, ...] = ()
        self._availability = availability
        self._nodes: dict[Place, Availability] = {}

    def availability(self, place: Place) -> Availability:
        """The breaker of one node; its recovery is the client's to tell."""
        return self._nodes.setdefault(place, self._availability.sibling())

    def forget(self, place: Place) -> None:
        """A node is gone: who comes back at its place starts anew."""
        self._nodes.pop(place, None)

    def moved(self) -> None:
        """Slots have other owners: what was owed to the old ones can be told to the new."""
        for callback in self._availability.listeners():
            shielded(callback)


class Node(Link):
    """The link to one node."""

    def __init__(self, cluster: Cluster, place: Place, shape: Shape) -> None:
        self._cluster = cluster
        self.place = place
        self.needed_at = -_GUEST_SECONDS
        super().__init__(
            node_at(cluster.endpoint, *place),
            cluster.config,
            shape.availability(place),
            cluster.listeners,
            cluster.elsewhere,
        )

    def serves(self, channel: bytes) -> bool:
        """Whether a channel's slot is here."""
        return self._cluster.connection.table[slot_of_key(channel)] is self

    def redirected(self, call: Call, said: str) -> bool:
        """Send a call where the node says it belongs."""
        return self._cluster.connection.redirect(self, call, said)

    def pushed(self, message: list[Reply]) -> None:
        """A channel that is taken from us is heard elsewhere."""
        super().pushed(message)
        if message[0] == b"sunsubscribe" and self._listeners.subscriptions.listened(message[1]):
            self._cluster.doubt()

    def lost(self, connection: Connection) -> None:
        """Note that the connection is gone, and perhaps the node with it."""
        super().lost(connection)
        self._cluster.doubt()

    def _failed(self, error: ForzeError) -> None:
        super()._failed(error)
        self._cluster.doubt()


class Cluster:
    """The :class:`~forze_redis.wire.way.Way` to a cluster."""

    def __init__(
        self,
        endpoint: Endpoint,
        config: RedisConfig,
        shape: Shape,
        listeners: Listeners,
        elsewhere: Elsewhere,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.where = endpoint.where
        self.config = config
        self.listeners = listeners
        self.elsewhere = elsewhere
        self.retired = False
        self.error: ForzeError | None = None
        self.connection = Router(self)
        self._shape = shape
        self._nodes: dict[Place, Node] = {}
        self._doubted = asyncio.Event()
        self._first: asyncio.Future[None] = self.loop.create_future()
        self._leaving: set[asyncio.Task[None]] = set()
        self._redis: RedisCluster | None = None
        if shape.ranges:
            self._adopt(shape.ranges)
        self._task = self.loop.create_task(
            self._run(), name=f"forze-redis {self.where}", context=contextvars.Context()
        )

    # -- what a client asks of its way -----------------------------------------

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The primaries, and nodes that are about to be."""
        return tuple(self._nodes.values())

    @property
    def generation(self) -> str:
        """Changes when that of any primary does, or one comes or goes."""
        known = sorted(node.generation for node in self._nodes.values())
        if not known:
            return UNKNOWN_GENERATION
        return sha1("".join(known).encode(), usedforsecurity=False).hexdigest()[:8]

    @property
    def generation_known(self) -> bool:
        """Whether every primary has told its own."""
        return bool(self._nodes) and all(node.generation_known for node in self.nodes)

    @property
    def busy(self) -> bool:
        """Whether calls wait, are in flight, or have a connection of a pool."""
        return any(node.busy for node in self.nodes)

    @property
    def redis(self) -> RedisCluster:
        """redis-py's client of the cluster, made at first use."""
        if self._redis is None:
            self._redis = open_cluster_pool(self.endpoint, self.config)
        return self._redis

    def home(self, key: bytes) -> Link:
        """Where a key, or a channel, lives; raises ``BackendUnavailable`` where it does nowhere."""
        node = self.connection.table[slot_of_key(key)]
        if node is None:
            raise self.nobody()
        return node

    def incarnation_of(self, key: str | None) -> Incarnation | None:
        """What the node of ``key`` is at present; there is no such thing of all."""
        node = None if key is None else self.connection.table[slot_of_key(key.encode())]
        return None if node is None else node.incarnation

    def available(self, key: str | None) -> bool:
        """Whether the node of ``key`` is there; without one, whether any is."""
        if key is None:
            return any(not node.availability.away for node in self.nodes)
        node = self.connection.table[slot_of_key(key.encode())]
        return node is not None and not node.availability.away

    def any_node(self) -> Node | None:
        """A node that answers, or else one that may."""
        nodes = self.nodes
        fit = [node for node in nodes if node.connection.ready and not node.availability.away]
        return random.choice(fit or nodes) if nodes else None

    def unserved(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """The future of a call that nobody serves, as far as this event loop knows."""
        if get_running_loop() is not self.loop:
            return self.elsewhere(packed, timeout)
        self.doubt()
        return self.refused()

    def refused(self) -> asyncio.Future[Reply]:
        """The future of a call that is not attempted; that of a node that is away is its own."""
        future: asyncio.Future[Reply] = get_running_loop().create_future()
        future.set_exception(self.nobody())
        return future

    async def send_large(self, packed: bytes, timeout: float) -> Reply:
        """Send a command on a connection of its node's pool, redirections included."""
        return await self.connection.send_large(packed, timeout)

    async def first_attempt(self) -> None:
        """Wait until the nodes are known and each was tried once; raises where none is there."""
        await asyncio.shield(self._first)

    async def close(self) -> None:
        """Let calls in flight be answered for a second, then close."""
        self._retire()
        await asyncio.gather(*(node.close() for node in self.nodes), *self._leaving)
        await asyncio.wait([self._task])
        self.listeners.tracking.rely_on(())

    def abandon(self) -> None:
        """Give up everything at once, from within the loop."""
        self._retire()
        for node in self.nodes:
            node.abandon()

    def _retire(self) -> None:
        self.retired = True
        self._task.cancel()
        if not self._first.done():
            self._failed(gone(self.where, "the client was closed", "none"))

    # -- who serves what -------------------------------------------------------

    def named(self, by: Node, host: str, port: int) -> Node:
        """The node that another one named; one whose name is not known is at that one's host."""
        node = self._node((by.place[0] if host in ("", "?") else host, port))
        node.needed_at = monotonic()
        return node

    def doubt(self) -> None:
        """Who serves what may have changed: ask."""
        self._doubted.set()

    async def _run(self) -> None:
        try:
            await self._keep_up()
        finally:
            self.retired = True
            if self._redis is not None:
                await self._redis.aclose()

    async def _keep_up(self) -> None:
        """Ask at every heartbeat, and on a doubt: the later the less there was to learn."""
        attempts = 0
        while not self.retired:
            self._doubted.clear()
            try:
                view = await self._ask_around()
            except ForzeError as error:
                self._failed(error)
                attempts += 1
                await asyncio.sleep(backoff(attempts, random.random()))
                continue
            except Exception as error:
                _log.exception("asking for the slots of %s failed", self.where)
                self._failed(self.nobody(error))
                await asyncio.sleep(backoff(10, random.random()))
                continue
            self.error = None
            attempts = 0 if self._adopt(view.ranges) else attempts + 1
            if not self._first.done():
                await self._settle_first()
            await self._hear_astray()
            try:
                async with asyncio.timeout(seconds(self.config.heartbeat)):
                    await self._doubted.wait()
            except TimeoutError:
                attempts = 0
            else:
                await asyncio.sleep(
                    min(_PAUSE_SECONDS * 2 ** min(attempts, 10), _LONGEST_PAUSE_SECONDS)
                )

    async def _ask_around(self) -> View:
        """The most recent view: of some nodes we are connected to, or of whoever can be reached."""
        fit = [node for node in self.nodes if node.connection.ready and not node.availability.away]
        some = random.sample(fit, min(_ASKED_AT_ONCE, len(fit)))
        try:
            return await newest(
                view_over(node.connection, node.endpoint, _ANSWER_SECONDS) for node in some
            )
        except ForzeError:
            timeout = seconds(self.config.connect_timeout)
            known = seeds_of(self.endpoint, self._nodes)
            return await newest(view_at(each, timeout) for each in known)

    def _failed(self, error: ForzeError) -> None:
        self.error = error
        if not self._first.done():
            self._first.set_exception(error)
            self._first.exception()  # not every client waits for it

    async def _settle_first(self) -> None:
        """Each node was tried: good enough to begin with, unless none is there or one refuses."""
        tried = await asyncio.gather(
            *(node.first_attempt() for node in self.nodes), return_exceptions=True
        )
        failed = [each for each in tried if isinstance(each, BaseException)]
        refused = [each for each in failed if isinstance(each, ConfigurationError)]
        if self._first.done():
            return
        if refused or len(failed) == len(tried):
            self._first.set_exception((*refused, *failed)[0])
            self._first.exception()
        else:
            self._first.set_result(None)

    def _adopt(self, ranges: tuple[Range, ...]) -> bool:
        """Let calls go where these say, and go on with those nodes only; whether it was news."""
        table: list[Node | None] = [None] * SLOTS
        for first, last, host, port in ranges:
            table[first : last + 1] = [self._node((host, port))] * (last + 1 - first)
        self.connection.table = table
        serving, now = set(table), monotonic()
        for place, node in tuple(self._nodes.items()):
            guest = node.error is None and now - node.needed_at < _GUEST_SECONDS
            if node not in serving and not guest:
                self._dismiss(place, node)
        self.listeners.tracking.rely_on(self._nodes.values())
        before, self._shape.ranges = self._shape.ranges, ranges
        if before and ranges != before:
            self._shape.moved()
        return ranges != before

    def _node(self, place: Place) -> Node:
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = Node(self, place, self._shape)
            self.listeners.tracking.rely_on(self._nodes.values())
        return node

    def _dismiss(self, place: Place, node: Node) -> None:
        """A node serves nothing any more: what waits for it goes to those who do."""
        del self._nodes[place]
        self._shape.forget(place)
        waiting = tuple(node.waiting)
        node.waiting.clear()
        for call in waiting:
            self.connection.again(call)
        leaving = self.loop.create_task(node.close(), name=f"forze-redis leaves {node.where}")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def nobody(self, error: object = None) -> BackendUnavailable:
        """The error of a call that no node is known for."""
        why = error or self.error
        because = f" ({why})" if why else ""
        return BackendUnavailable(
            f"nobody serves this slot in {self.where}{because}; the call was not attempted. Look "
            "at CLUSTER INFO and CLUSTER NODES",
            backend=BACKEND,
        )

    # -- channels --------------------------------------------------------------

    async def _hear_astray(self) -> None:
        """Have channels heard where their slots are now, of those nodes that can be asked."""
        subscriptions, table = self.listeners.subscriptions, self.connection.table
        astray: dict[Connection, list[bytes]] = {}
        for channel in subscriptions.channels:
            node = table[slot_of_key(channel)]
            if node is None or not node.connection.ready:
                continue  # heard as soon as it is
            if not subscriptions.confirmed(channel, node.connection):
                astray.setdefault(node.connection, []).append(channel)
        failed = await asyncio.gather(
            *(subscriptions.hear(*each, _ANSWER_SECONDS) for each in astray.items())
        )
        if any(failed):
            self.doubt()
