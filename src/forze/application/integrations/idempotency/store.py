"""What an idempotency port asks of the place where records are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Protocol, Self

from forze.application.contracts.idempotency import IdempotencySnapshot
from forze.application.contracts.transaction import Transaction
from forze.application.integrations.idempotency.record import Answer


class Changes(Protocol):
    """Hears of one record."""

    async def wait(self, seconds: float) -> None:
        """Return when the record may have changed since the last time, or after ``seconds``."""
        ...


class Told:
    """Hears of one record by being told. Implements ``Changes``."""

    __slots__ = ("_changed",)

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """It may have changed."""
        self._changed.set()

    async def wait(self, seconds: float) -> None:
        """Until it is told, or ``seconds`` have passed."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()


class IdempotencyStore(Protocol):
    """Keeps records by the transitions of ``record``, each in one atomic step.

    Leases are counted by the store's own clock. Calls raise ``BackendError``; asked again
    with the same owner after a lost reply, they give the same answer.
    """

    def name(self, operation: str, key: str) -> str:
        """The record's name under the bound tenant and principal."""
        ...

    def place(self) -> Hashable:
        """Where the record is kept, as seen from this task: what tells two servers apart."""
        ...

    def hold(self) -> AbstractAsyncContextManager[Self]:
        """The store as it is reached now, kept open; for whatever outlives the call."""
        ...

    def transaction(self) -> Transaction | None:
        """The transaction open in this task that records are written in, if there is one."""
        ...

    async def claim(
        self, name: str, owner: str, payload_hash: str, lease: timedelta, retention: timedelta
    ) -> Answer:
        """Ask for the right to run; visible to everyone at once, in a transaction too."""
        ...

    async def beat(
        self, name: str, owner: str, generation: int, lease: timedelta, retention: timedelta
    ) -> bool:
        """Keep up the lease; False where it is another's by now."""
        ...

    async def complete(
        self,
        name: str,
        owner: str,
        generation: int,
        snapshot: IdempotencySnapshot,
        retention: timedelta,
    ) -> bool:
        """Store the answer; False where the record is another's by now. Written in
        :meth:`transaction` where there is one."""
        ...

    async def release(self, name: str, owner: str, generation: int, retention: timedelta) -> bool:
        """Free the key; False where it is not the owner's. Generation 0: whichever it has."""
        ...

    def watch(self, name: str) -> AbstractAsyncContextManager[Changes]:
        """Hear of changes of the record from now on."""
        ...

    async def check(self) -> None:
        """Compare what the store needs with what is there; raises ``ConfigurationError``."""
        ...
