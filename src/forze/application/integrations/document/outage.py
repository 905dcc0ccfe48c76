"""What a process remembers while the cache cannot be told of its writes.

A write whose invalidation did not arrive enters the journal: from then on this process
bypasses the cache for that document, and when the server answers again the journal is
invalidated first. Other processes may serve the old value until then, at most for the TTL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from secrets import token_hex

from forze.application.contracts.cache import CacheInvalidation, PointerCache
from forze.application.contracts.deps import Resolver
from forze.errors import ForzeError

CAPACITY = 10_000
"""Addresses remembered one by one; above it the whole namespace is bypassed and cleared."""

BATCH = 500
RETRY_SECONDS = 1.0


class Journal:
    """The invalidations one cache has not been told of."""

    def __init__(
        self,
        pointers: PointerCache,
        resolver: Resolver,
        *,
        tier: CacheInvalidation | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self._pointers = pointers
        self._tier = tier
        self._resolver = resolver
        self._capacity = capacity
        self._owed: dict[str, int] = {}
        self._writes: dict[str, set[str]] = {}
        self._namespaces: dict[str, int] = {}
        self._clock = 0
        self._settling: asyncio.Task[None] | None = None
        self.active = False
        """Whether anything is owed. Asked by every read, so an attribute."""
        pointers.on_recovery(self._changed)

    def __len__(self) -> int:
        return len(self._owed)

    @property
    def overflowed(self) -> bool:
        """Whether the whole namespace is bypassed until it has been cleared."""
        return bool(self._namespaces)

    def bypasses(self, address: str) -> bool:
        """Whether this process must not ask the cache for ``address``."""
        return address in self._owed or (
            bool(self._namespaces) and self._pointers.namespace(address) in self._namespaces
        )

    def owe(self, addresses: Sequence[str], write_id: str | None = None) -> None:
        """Remember that the cache was not told that these changed, by a write whose intent may
        have arrived all the same."""
        stamp = self._next()
        if self._tier is not None:
            self._tier.drop(addresses)
        self._owed.update(dict.fromkeys(addresses, stamp))
        if write_id is not None:
            for address in addresses:
                self._writes.setdefault(address, set()).add(write_id)
        if len(self._owed) > self._capacity:
            for namespace in set(map(self._pointers.namespace, self._owed)):
                self._namespaces[namespace] = stamp
            self._owed.clear()
            self._writes.clear()
        self._changed()

    def owe_namespace(self, namespace: str) -> None:
        """Remember that the cache was not told to drop a whole namespace."""
        if self._tier is not None:
            self._tier.flush()
        self._namespaces[namespace] = self._next()
        self._changed()

    def now(self) -> int:
        """A mark for :meth:`settled`: what is owed after it is not settled by it."""
        return self._clock

    def settled(self, addresses: Sequence[str], mark: int, write_id: str) -> None:
        """The cache was told of these by ``write_id``, by something that was sent at ``mark``.

        What another write owes as well stays: its intent may still stand.
        """
        for address in addresses:
            if self._owed.get(address, mark + 1) > mark:
                continue
            writes = self._writes.get(address, set())
            writes.discard(write_id)
            if not writes:
                del self._owed[address]
                self._writes.pop(address, None)
        self._changed()

    def _next(self) -> int:
        self._clock += 1
        return self._clock

    def _changed(self) -> None:
        self.active = bool(self._namespaces) or bool(self._owed)
        settling = self._settling
        idle = (
            settling is None
            or settling.done()
            or settling.get_loop() is not asyncio.get_running_loop()
        )
        if self.active and idle and self._pointers.available():
            self._settling = self._resolver.spawn(self._settle(), name="forze-journal")

    async def _settle(self) -> None:
        """Tell the cache everything that is owed; stop when it is away again."""
        while self.active:
            mark = self.now()
            try:
                if self._namespaces:
                    namespace = next(iter(self._namespaces))
                    await self._pointers.clear(namespace)
                    if self._namespaces[namespace] <= mark:
                        del self._namespaces[namespace]
                else:
                    due = self._due()
                    await asyncio.gather(
                        *(self._pointers.done(batch, write_id) for write_id, batch in due.items())
                    )
                    for write_id, batch in due.items():
                        self.settled(batch, mark, write_id)
            except ForzeError:
                if not self._pointers.available():
                    return  # told again on recovery
                await asyncio.sleep(RETRY_SECONDS)
            self._changed()

    def _due(self) -> dict[str, list[str]]:
        """What to tell next, by the write that owes it: with its id its intent goes as well."""
        nobody, due = token_hex(8), dict[str, list[str]]()
        for address in islice(self._owed, BATCH):
            write_id = next(iter(self._writes.get(address, ())), nobody)
            due.setdefault(write_id, []).append(address)
        return due
