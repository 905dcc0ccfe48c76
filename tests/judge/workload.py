"""The random reads and writes of one process, each logged when it is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from itertools import accumulate, count
from typing import TextIO
from uuid import UUID

from tests.faults.world import ProductCreate, ProductRead, ProductUpdate
from tests.judge.logbook import Attempt, Logbook
from tests.judge.orders import Orders
from tests.judge.record import now
from tests.judge.served import Watched, tally

from forze.application.contracts.document import DocumentSpec
from forze.application.execution import ExecutionContext
from forze.errors import ForzeError

VISITORS = 6
"""Tasks that read, mostly."""

HOLDERS = 2
"""Tasks that hold transactions open, so that others read under their intents."""

ZIPF = 0.9
HOLD_SECONDS = (0.05, 0.25)
ROLLED_BACK = 0.125


def document_id(document: int) -> UUID:
    """The id of the n-th document."""
    return UUID(int=document + 1)


class RolledBack(Exception):
    """Leaves a transaction on purpose."""


class Workload:
    """``run()`` does as many operations as ordered; ``done`` tells how many so far."""

    def __init__(
        self,
        orders: Orders,
        ctx: ExecutionContext,
        spec: DocumentSpec[ProductRead, ProductCreate, ProductUpdate],
        log: TextIO,
    ) -> None:
        self._orders = orders
        self._ctx = ctx
        self._query = ctx.document.query(spec)
        self._docs = ctx.document.command(spec)
        self._book = Logbook(orders.process, log)
        self._values = count((orders.process + 1) * 10**9)
        self._weights = list(accumulate((n + 1) ** -ZIPF for n in range(orders.documents)))

    @property
    def done(self) -> int:
        """How many operations were begun."""
        return self._book.operations

    async def run(self) -> None:
        """All of it, then the closing line."""
        async with asyncio.TaskGroup() as group:
            for number in range(VISITORS + HOLDERS):
                dice = random.Random(f"{self._orders.seed}/{self._orders.process}/{number}")
                group.create_task(self._visit(dice) if number < VISITORS else self._hold(dice))
        stats = self._query.stats()
        assert stats is not None
        self._book.close(stats, tally(self._query).l1)

    # -- what a task does ----------------------------------------------------

    async def _visit(self, dice: random.Random) -> None:
        while self.done < self._orders.operations:
            (document,), roll = self._pick(dice, 1), dice.random()
            if roll < 0.94:
                await self._read(document)
            elif roll < 0.96:
                await self._read_many(self._pick(dice, dice.randint(2, 5)))
            elif roll < 0.97:
                await self._read(document, within=dice.uniform(0, 0.003))
            else:
                await self._change(document, dice)
                if dice.random() < 0.5:
                    await self._read(document)
            pause = dice.expovariate(1 / self._orders.pause)
            await asyncio.sleep(0 if dice.random() < 0.3 else pause)

    async def _change(self, document: int, dice: random.Random) -> None:
        roll = dice.random()
        if roll < 0.05:
            await self._update(document, within=dice.uniform(0, 0.006))
        elif roll < 0.65:
            await self._update(document, behind=int(dice.random() < 0.05))
        elif roll < 0.75:
            await self._update_many(self._pick(dice, dice.randint(1, 3)))
        else:
            await self._transact(self._pick(dice, dice.randint(1, 3)), dice, hold=0)

    async def _hold(self, dice: random.Random) -> None:
        while self.done < self._orders.operations:
            await self._transact(self._pick(dice, 1), dice, hold=dice.uniform(*HOLD_SECONDS))
            await asyncio.sleep(dice.uniform(0, HOLD_SECONDS[0] / 5))

    def _pick(self, dice: random.Random, documents: int) -> list[int]:
        """Distinct documents, the first of all far more often than the last."""
        some = dice.choices(range(len(self._weights)), cum_weights=self._weights, k=documents)
        return list(dict.fromkeys(some))

    # -- reads ---------------------------------------------------------------

    async def _read(self, document: int, *, within: float | None = None) -> None:
        """One document, given up after ``within`` seconds."""
        operation, start = self._book.begin(), now()
        watched = Watched(self._query, self._query.get(document_id(document)))
        try:
            async with asyncio.timeout(within):
                found = await watched
        except (ForzeError, TimeoutError) as error:
            self._book.missed(operation, document, start, error)
        else:
            self._book.found(operation, document, start, found, watched.served(1))

    async def _read_many(self, documents: Sequence[int]) -> None:
        """Several documents in one call."""
        operation, start = self._book.begin(), now()
        ids = [document_id(each) for each in documents]
        watched = Watched(self._query, self._query.get_many(ids))
        try:
            found = await watched
        except ForzeError as error:
            self._book.missed(operation, documents[0], start, error)
        else:
            for document, each in zip(documents, found, strict=True):
                self._book.found(operation, document, start, each, watched.served(len(ids)))

    async def _current(
        self, operation: int, document: int, *, lock: bool = False, skip_cache: bool = True
    ) -> int:
        """The revision in the source."""
        start, pk = now(), document_id(document)
        found = await self._query.get(pk, for_update=lock, skip_cache=skip_cache)
        self._book.found(operation, document, start, found, "direct")
        return found.rev

    # -- writes --------------------------------------------------------------

    async def _update(self, document: int, *, behind: int = 0, within: float | None = None) -> None:
        """One update on top of what the source has, or on a revision ``behind`` it."""
        write = Attempt(self._book)
        try:
            rev = await self._current(write.operation, document) - behind
            async with asyncio.timeout(within):
                await self._send(write, document, rev)
        except (ForzeError, TimeoutError) as error:
            write.end(error)
        else:
            write.end()

    async def _update_many(self, documents: Sequence[int]) -> None:
        """Several in one call."""
        write = Attempt(self._book)
        try:
            revs = [await self._current(write.operation, each) for each in documents]
            updates = []
            for document, rev in zip(documents, revs, strict=True):
                value = next(self._values)
                write.send(document, rev + 1, value)
                updates.append((document_id(document), rev, ProductUpdate(price=value)))
            await self._docs.update_many(updates)
        except ForzeError as error:
            write.end(error)
        else:
            write.end()

    async def _transact(
        self, documents: Sequence[int], dice: random.Random, *, hold: float
    ) -> None:
        """Update all in a transaction held open for ``hold`` seconds; some are rolled back."""
        write = Attempt(self._book)
        lock, roll_back = dice.random() < 0.5, dice.random() < ROLLED_BACK
        try:
            async with self._ctx.transaction("products"):
                for document in sorted(documents):
                    rev = await self._current(
                        write.operation, document, lock=lock, skip_cache=False
                    )
                    await self._send(write, document, rev)
                await asyncio.sleep(hold)
                if roll_back:
                    raise RolledBack
        except (ForzeError, RolledBack) as error:
            write.end(error)
        else:
            write.end()

    async def _send(self, write: Attempt, document: int, on: int) -> None:
        value = next(self._values)
        write.send(document, on + 1, value)
        await self._docs.update(document_id(document), on, ProductUpdate(price=value))
