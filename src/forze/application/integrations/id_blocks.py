"""Ids out of blocks: one round trip for many ids, and never the same id twice.

The counter on the server is moved past a block before any id of it is handed out (the
hi/lo scheme), so a process that ends, however it ends, leaves a gap and no more. A block is
an iterator: taking an id is one step of it, which no thread can see half done. What must
not happen is that two processes hold one block, so a forked child drops what it inherited,
and an allocator can neither be pickled nor copied.

A block is fetched in a task of its own (routed as its first caller is): whoever waits for
it can be cancelled without losing it for the others. With a quarter of a block left the next
one is fetched ahead.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import NoReturn

from forze.application.contracts.deps import Resolver
from forze.application.integrations.single_flight import SingleFlight

SHELVES = 10_000
"""Counters (tenants) that one allocator keeps blocks of; beyond it the oldest is given up."""


class _Shelf:
    """The blocks of one counter."""

    __slots__ = ("_blocks", "ahead_at", "waiting")

    def __init__(self) -> None:
        self._blocks: deque[Iterator[int]] = deque()
        self.ahead_at: int | None = None
        """The id at which the next block is fetched."""
        self.waiting = 0

    def put(self, block: range) -> None:
        quarter = len(block) // 4
        self.ahead_at = block[-1] - quarter if quarter else None
        self._blocks.append(iter(block))

    def take(self) -> int | None:
        while self._blocks:
            with suppress(IndexError, ValueError):  # another thread was quicker to remove it
                block = self._blocks[0]
                taken = next(block, None)
                if taken is not None:
                    return taken
                self._blocks.remove(block)
        return None


class IdBlocks:
    """Hands out ids of blocks of a counter. Implements ``IdAllocator``.

    ``allocate`` takes a block from the counter, ``scope`` tells which counter that is for
    the caller (it may depend on the bound tenant).
    """

    def __init__(
        self,
        allocate: Callable[[int], Awaitable[range]],
        scope: Callable[[], Hashable],
        resolver: Resolver,
        *,
        block: int,
    ) -> None:
        self._allocate = allocate
        self._scope = scope
        self._flights: SingleFlight[None] = SingleFlight(resolver, "forze-id-block")
        self._block = block
        self._shelves: dict[Hashable, _Shelf] = {}
        _allocators.add(self)

    def take_nowait(self) -> int | None:
        """An id of the block in hand, None when it is used up."""
        shelf = self._shelves.get(self._scope())
        return None if shelf is None else shelf.take()

    async def next(self) -> int:
        """The next id; no round trip while a block lasts."""
        scope = self._scope()
        while True:
            shelf = self._shelves.get(scope) or self._new_shelf(scope)
            taken = shelf.take()
            if taken is not None:
                if taken == shelf.ahead_at:
                    self._flights.begin(scope, partial(self._fill, shelf), copy_context())
                return taken
            shelf.waiting += 1
            try:
                await self._flights.share(scope, partial(self._fill, shelf), copy_context())
            finally:
                shelf.waiting -= 1

    def _new_shelf(self, scope: Hashable) -> _Shelf:
        if len(self._shelves) >= SHELVES:
            self._shelves.pop(next(iter(self._shelves)), None)
        return self._shelves.setdefault(scope, _Shelf())

    async def _fill(self, shelf: _Shelf) -> None:
        shelf.put(await self._allocate(max(self._block, shelf.waiting)))

    def _forked(self) -> None:
        self._shelves = {}
        self._flights.forget()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an allocator cannot be pickled or copied: its block belongs to one process; "
            "make one from the counter where it is needed"
        )


_allocators: weakref.WeakSet[IdBlocks] = weakref.WeakSet()


def _after_fork() -> None:
    for allocator in tuple(_allocators):
        allocator._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
