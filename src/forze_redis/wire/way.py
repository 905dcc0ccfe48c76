"""What a client needs of its servers: of the one there is, or of the primaries of a cluster.

:class:`~forze_redis.wire.link.Link` is the way to one, :class:`~forze_redis.wire.cluster.Cluster`
to many; the client does not tell them apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from forze.errors import ForzeError
from forze_redis.wire.connection import Reply

if TYPE_CHECKING:
    from forze_redis.wire.link import Incarnation, Link


class Sender(Protocol):
    """Where packed commands go."""

    def send(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """Queue one command; the future has its reply or a ``BackendError``."""
        ...

    def send_cached(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """:meth:`send` on the cache path: fails at once where only its own server is away, and
        need not be written together with others."""
        ...

    def post(self, packed: bytes) -> None:
        """Queue one command whose reply nobody wants, if it can be sent right now."""

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""


class Way(Protocol):
    """The way to the server, or servers, of one client from one event loop.

    A key is answered for by the server that has it; without one, by all together.
    """

    loop: asyncio.AbstractEventLoop
    where: str
    error: ForzeError | None
    retired: bool

    @property
    def connection(self) -> Sender:
        """Where commands go."""
        ...

    @property
    def nodes(self) -> Sequence[Link]:
        """Each server by itself."""
        ...

    @property
    def generation(self) -> str:
        """Changes when another server answers for a key."""
        ...

    @property
    def generation_known(self) -> bool:
        """Whether the servers have told their generations."""
        ...

    @property
    def busy(self) -> bool:
        """Whether calls are under way, on the pool's connections too."""
        ...

    @property
    def redis(self) -> Redis | RedisCluster:
        """The redis-py client beside it, made at first use."""
        ...

    def home(self, key: bytes) -> Link:
        """Where a key, or a channel, lives; ``BackendUnavailable`` where it does nowhere."""
        ...

    def incarnation_of(self, key: str | None) -> Incarnation | None:
        """What the server is at present; None without one, or for more than one."""
        ...

    def available(self, key: str | None) -> bool:
        """Whether the server is there; without a key, whether any is."""
        ...

    def refused(self) -> asyncio.Future[Reply]:
        """The future of a call that is not attempted."""
        ...

    async def send_large(self, packed: bytes, timeout: float) -> Reply:
        """Send a command on a connection of the pool."""
        ...

    async def first_attempt(self) -> None:
        """Wait for the outcome of the first attempt to connect; raises its error."""

    async def close(self) -> None:
        """Let calls in flight be answered for a second, then close."""

    def abandon(self) -> None:
        """Give up everything at once, from within the loop."""

    def doubt(self) -> None:
        """Where keys live may have changed: ask."""
