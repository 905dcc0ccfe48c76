"""What a process remembers while the cache cannot be told of its writes.

A write whose invalidation did not arrive enters the journal: from then on this process
bypasses the cache for that document, and when the server answers again the journal is
invalidated first. Other processes may serve the old value until then, at most for the TTL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from secrets import token_hex

from forze.application.contracts.cache import CacheInvalidation, PointerCache
from forze.application.contracts.deps import Resolver
from forze.errors import ForzeError

CAPACITY = 10_000
"""Addresses remembered one by one; above it the whole namespace is bypassed and cleared."""

BATCH = 500
RETRY_SECONDS = 1.0


class Clock:
    """Counts what happened, so that a mark taken in one journal means the same in another."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


class Journal:
    """The invalidations one cache, or one namespace of it, has not been told of."""

    def __init__(
        self,
        pointers: PointerCache,
        resolver: Resolver,
        *,
        tier: CacheInvalidation | None = None,
        capacity: int = CAPACITY,
        namespace: str | None = None,
        clock: Clock | None = None,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._namespace = namespace
        self._on_change = on_change
        self._pointers = pointers
        self._tier = tier
        self._resolver = resolver
        self._capacity = capacity
        self._owed: dict[str, int] = {}
        self._writes: dict[str, set[str]] = {}
        self._namespaces: dict[str, int] = {}
        self._clock = clock or Clock()
        self._settling: asyncio.Task[None] | None = None
        self.active = False
        """Whether anything is owed. Asked by every read, so an attribute."""
        if on_change is None:
            pointers.on_recovery(self.changed)

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
        self.changed()

    def owe_namespace(self, namespace: str) -> None:
        """Remember that the cache was not told to drop a whole namespace."""
        if self._tier is not None:
            self._tier.flush()
        self._namespaces[namespace] = self._next()
        self.changed()

    def now(self) -> int:
        """A mark for :meth:`settled`: what is owed after it is not settled by it."""
        return self._clock.now

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
        self.changed()

    def _next(self) -> int:
        self._clock.now += 1
        return self._clock.now

    def changed(self) -> None:
        """Something is owed or settled, or the server answers again: settle what can be."""
        active = bool(self._namespaces) or bool(self._owed)
        if active is not self.active:
            self.active = active
            if self._on_change is not None:
                self._on_change(active)
        settling = self._settling
        idle = (
            settling is None
            or settling.done()
            or settling.get_loop() is not asyncio.get_running_loop()
        )
        if active and idle and self._pointers.available(self._namespace):
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
                    if not due:
                        return  # all of it is for servers that are away: told on recovery
                    await asyncio.gather(
                        *(self._pointers.done(batch, write_id) for write_id, batch in due.items())
                    )
                    for write_id, batch in due.items():
                        self.settled(batch, mark, write_id)
            except ForzeError:
                if not self._pointers.available(self._namespace):
                    return  # told again on recovery
                await asyncio.sleep(RETRY_SECONDS)
            self.changed()

    def _due(self) -> dict[str, list[str]]:
        """What can be told next, by the write that owes it: with its id its intent goes as well."""
        nobody, due = token_hex(8), dict[str, list[str]]()
        for address in islice(filter(self._pointers.available, self._owed), BATCH):
            write_id = next(iter(self._writes.get(address, ())), nobody)
            due.setdefault(write_id, []).append(address)
        return due


class Journals:
    """The journals of one cache: one for each namespace that is owed something.

    Where tenants have servers, or namespaces, of their own, what one of them is owed neither
    fills another's journal nor holds up its settling.
    """

    def __init__(
        self,
        pointers: PointerCache,
        resolver: Resolver,
        *,
        tier: CacheInvalidation | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self._pointers = pointers
        self._resolver = resolver
        self._tier = tier
        self._capacity = capacity
        self._clock = Clock()
        self._of: dict[str, Journal] = {}
        self.active = False
        """Whether anything is owed. Asked by every read, so an attribute."""
        pointers.on_recovery(self._recovered)

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def bypasses(self, address: str) -> bool:
        """Whether this process must not ask the cache for ``address``."""
        journal = self._of.get(self._pointers.namespace(address))
        return journal is not None and journal.bypasses(address)

    def owe(self, addresses: Sequence[str], write_id: str | None = None) -> None:
        """:meth:`Journal.owe` in the journal of each address."""
        for namespace, its in self._apart(addresses).items():
            self._journal(namespace).owe(its, write_id)

    def owe_namespace(self, namespace: str) -> None:
        """:meth:`Journal.owe_namespace`."""
        self._journal(namespace).owe_namespace(namespace)

    def now(self) -> int:
        """A mark for :meth:`settled`: what is owed after it is not settled by it."""
        return self._clock.now

    def settled(self, addresses: Sequence[str], mark: int, write_id: str) -> None:
        """:meth:`Journal.settled` in the journal of each address."""
        if self._of:
            for namespace, its in self._apart(addresses).items():
                if namespace in self._of:
                    self._of[namespace].settled(its, mark, write_id)

    def _apart(self, addresses: Sequence[str]) -> dict[str, list[str]]:
        apart: dict[str, list[str]] = {}
        for address in addresses:
            apart.setdefault(self._pointers.namespace(address), []).append(address)
        return apart

    def _journal(self, namespace: str) -> Journal:
        """The journal of a namespace; those with nothing in them go when another comes."""
        journal = self._of.get(namespace)
        if journal is None:
            for name, each in tuple(self._of.items()):
                if not each.active:
                    del self._of[name]
            journal = self._of[namespace] = Journal(
                self._pointers,
                self._resolver,
                tier=self._tier,
                capacity=self._capacity,
                namespace=namespace,
                clock=self._clock,
                on_change=partial(self._changed, namespace),
            )
        return journal

    def _changed(self, namespace: str, owes: bool) -> None:
        self.active = any(each.active for each in self._of.values())
        self._pointers.owing(namespace, owes)

    def _recovered(self) -> None:
        for journal in tuple(self._of.values()):
            journal.changed()
