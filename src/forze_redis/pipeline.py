"""Several commands in one write and one round trip.

::

    stock, price = await client.pipeline().call("GET", "stock").call("GET", "price").execute()

Not a transaction: each command stands by itself, and one that fails does not stop the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from forze_redis.wire.connection import Reply
from forze_redis.wire.scripts import Script, pack

if TYPE_CHECKING:
    from forze_redis.client import Argument, RedisClient


class Pipeline:
    """Commands collected until :meth:`execute`; may be used again after it.

    As a context manager it discards what was not executed.
    """

    __slots__ = ("_client", "_queued")

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._queued: list[bytes] = []

    def __len__(self) -> int:
        """How many commands are queued."""
        return len(self._queued)

    def call(self, command: str | bytes, *args: Argument) -> Self:
        """Queue one command; refused here and now where :meth:`RedisClient.call` refuses it."""
        self._queued.append(self._client.packed(command, *args))
        return self

    def run(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument] = ()) -> Self:
        """Queue one script; see :meth:`RedisClient.run`."""
        self._queued.append(pack("EVALSHA", script.sha1, len(keys), *keys, *args))
        return self

    async def execute(
        self, *, timeout: float | None = None, return_exceptions: bool = False
    ) -> list[Reply]:
        """Send what is queued, in order and in one write; the replies, in order.

        ``timeout`` in seconds, for all together. Where a command failed, its error is raised when
        every other one has been answered; with ``return_exceptions`` it stands in the place of
        its reply. One round trip; above ``RedisConfig.max_in_flight`` commands, or for those
        above 256 KiB, more.
        """
        queued, self._queued = self._queued, []
        send = self._client.send
        replies = await asyncio.gather(
            *(send(packed, timeout) for packed in queued), return_exceptions=True
        )
        for reply in replies:
            if isinstance(reply, BaseException) and not return_exceptions:
                raise reply
        return replies

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queued.clear()
