"""What a process remembers while the cache cannot be told of its writes.

A write whose invalidation did not arrive enters the journal: from then on this process
bypasses the cache for that document, and when the server answers again the journal is
invalidated first. Other processes may serve the old value until then, at most for the TTL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from secrets import token_hex

from forze.application.contracts.cache import PointerCache
from forze.application.contracts.deps import Resolver
from forze.errors import BackendError

CAPACITY = 10_000
"""Addresses remembered one by one; above it the whole namespace is bypassed and cleared."""

BATCH = 500
RETRY_SECONDS = 1.0


class Journal:
    """The invalidations one cache has not been told of."""

    def __init__(
        self, pointers: PointerCache, resolver: Resolver, *, capacity: int = CAPACITY
    ) -> None:
        self._pointers = pointers
        self._resolver = resolver
        self._capacity = capacity
        self._owed: set[str] = set()
        self._everything = False
        self._settling: asyncio.Task[None] | None = None
        pointers.on_recovery(self._settle_soon)

    @property
    def active(self) -> bool:
        """Whether anything is owed."""
        return self._everything or bool(self._owed)

    def __len__(self) -> int:
        return len(self._owed)

    @property
    def overflowed(self) -> bool:
        """Whether the whole namespace is bypassed until it has been cleared."""
        return self._everything

    def bypasses(self, address: str) -> bool:
        """Whether this process must not ask the cache for ``address``."""
        return self._everything or address in self._owed

    def owe(self, addresses: Sequence[str]) -> None:
        """Remember that the cache was not told that these changed."""
        if len(self._owed) + len(addresses) > self._capacity:
            self._everything = True
            self._owed.clear()
        elif not self._everything:
            self._owed.update(addresses)
        if self._pointers.available():
            self._settle_soon()

    def owe_everything(self) -> None:
        """Remember that the cache was not told to drop the namespace."""
        self._everything = True
        self._owed.clear()
        if self._pointers.available():
            self._settle_soon()

    def settled(self, addresses: Sequence[str]) -> None:
        """The cache was told after all."""
        self._owed.difference_update(addresses)

    def _settle_soon(self) -> None:
        if self.active and (self._settling is None or self._settling.done()):
            self._settling = self._resolver.spawn(self._settle(), name="forze-journal")

    async def _settle(self) -> None:
        """Tell the cache everything that is owed; stop when it is away again."""
        while self.active:
            try:
                if self._everything:
                    await self._pointers.clear()
                    self._everything = False
                else:
                    batch = list(self._owed)[:BATCH]
                    await self._pointers.done(batch, token_hex(8))
                    self._owed.difference_update(batch)
            except BackendError:
                if not self._pointers.available():
                    return  # on_recovery calls again
                await asyncio.sleep(RETRY_SECONDS)
