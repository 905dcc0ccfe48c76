"""Channels of sharded pub/sub, heard on the connection that carries the calls.

RESP3 delivers messages as pushes between replies, so a subscription costs no connection of
its own. Delivery is at most once: what is published while the connection is being replaced
is lost, and whoever listens is told so (``None``) as soon as the channel is heard again.

Redis documentation, sharded pub/sub; ``SSUBSCRIBE``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

from forze.errors import BackendCorrupt, ConfigurationError
from forze_redis.wire.connection import Connection, Reply
from forze_redis.wire.scripts import pack

_log = logging.getLogger("forze.redis")

Heard: TypeAlias = Callable[[bytes | None], None]
"""Takes each message; None when some may have been missed. Must not block."""


class Subscription:
    """One listener on one channel; :meth:`close` ends it."""

    __slots__ = ("_subscriptions", "channel", "heard")

    def __init__(self, subscriptions: Subscriptions, channel: bytes, heard: Heard) -> None:
        self._subscriptions = subscriptions
        self.channel = channel
        self.heard = heard

    @property
    def open(self) -> bool:
        """Whether it still hears: neither it nor its client was closed."""
        return self._subscriptions.holds(self)

    def close(self) -> None:
        """Hear nothing from now on. Not an error if that was done before."""
        self._subscriptions.remove(self)


class Subscriptions:
    """The channels of one client, with their listeners in this process."""

    def __init__(self) -> None:
        self._channels: dict[bytes, list[Subscription]] = {}
        self._asked: dict[bytes, Connection] = {}
        self._confirmed: set[bytes] = set()

    @property
    def any(self) -> bool:
        """Whether somebody listens."""
        return bool(self._channels)

    def add(self, channel: str | bytes, heard: Heard) -> Subscription:
        """Listen as soon as the channel is subscribed to (see :meth:`ask`)."""
        name = channel if isinstance(channel, bytes) else channel.encode()
        subscription = Subscription(self, name, heard)
        self._channels.setdefault(name, []).append(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """The last listener that leaves takes the subscription with it."""
        if not self.holds(subscription):
            return
        listeners = self._channels[subscription.channel]
        listeners.remove(subscription)
        if not listeners:
            del self._channels[subscription.channel]
            self._confirmed.discard(subscription.channel)
            connection = self._asked.pop(subscription.channel, None)
            if connection is not None and connection.ready:
                connection.leave(subscription.channel)

    def holds(self, subscription: Subscription) -> bool:
        """Whether it was neither closed nor forgotten."""
        return subscription in self._channels.get(subscription.channel, ())

    def confirmed(self, channel: bytes, connection: Connection) -> bool:
        """Whether the server has confirmed the channel on this very connection."""
        return channel in self._confirmed and self._asked.get(channel) is connection

    async def ask(self, connection: Connection, channel: bytes, timeout: float) -> None:
        """Subscribe to a channel on a connection; done when the server has confirmed."""
        self._asked[channel] = connection
        await connection.ask(pack("SSUBSCRIBE", channel), timeout)
        if self._asked.get(channel) is connection:
            self._confirmed.add(channel)

    async def begin(
        self, connection: Connection, timeout: float, serves: Callable[[bytes], bool]
    ) -> None:
        """Hear the channels that a connection ``serves``, which nobody uses yet; raises if it is
        lost meanwhile."""
        failed = await self.hear(connection, tuple(filter(serves, self._channels)), timeout)
        if failed is not None:
            raise failed

    async def hear(
        self, connection: Connection, channels: Sequence[bytes], timeout: float
    ) -> BaseException | None:
        """Hear these channels on another connection from now on; an error that may pass.

        Listeners are told that they may have missed something, also where they may not listen.
        """
        self._confirmed.difference_update(channels)
        asked = (self.ask(connection, channel, timeout) for channel in channels)
        failed = None
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for channel, error in zip(channels, answers, strict=True):
            if isinstance(error, ConfigurationError | BackendCorrupt):
                _log.warning("channel %r cannot be heard: %s", channel, error)
            elif error is not None:
                failed = error
                continue
            self._tell(channel, None)
        return failed

    @property
    def channels(self) -> tuple[bytes, ...]:
        """The channels that somebody listens to."""
        return tuple(self._channels)

    def listened(self, channel: bytes) -> bool:
        """Whether somebody listens to a channel."""
        return channel in self._channels

    def end(self) -> None:
        """Forget every channel: the event loop of their listeners is no longer ours."""
        self._channels.clear()
        self._asked.clear()
        self._confirmed.clear()

    def heard(self, message: Sequence[Reply]) -> None:
        """Take a push message of the server."""
        if message[0] == b"smessage":
            self._tell(message[1], message[2])
        elif message[0] == b"sunsubscribe":  # unasked: the channel's slot is another node's now
            self._confirmed.discard(message[1])

    def _tell(self, channel: bytes, message: bytes | None) -> None:
        for subscription in tuple(self._channels.get(channel, ())):
            try:
                subscription.heard(message)
            except Exception:
                _log.exception("a listener of channel %r failed", channel)
