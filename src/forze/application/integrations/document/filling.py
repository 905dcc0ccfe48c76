"""Loading from the source and storing what came: under a lease, or a right to refresh.

What is loaded is stored only by whoever holds the pointer, and kept in the process only if
that store was accepted and nothing changed meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import timedelta
from typing import Generic, Protocol
from uuid import UUID

from typing_extensions import TypeVar

from forze.application.contracts.cache import CacheSpec, Fill, PointerCache
from forze.application.integrations.document.codec import Codec, V, seal
from forze.application.integrations.document.freshness import lifetime, window
from forze.application.integrations.document.l1.tier import Key, Tier
from forze.application.integrations.document.outage import Journals
from forze.application.integrations.document.protocol import RENEW_MS
from forze.application.integrations.document.stats import CacheCounters
from forze.domain.models import utcnow
from forze.errors import ForzeError, NotFoundError

_MILLISECOND = timedelta(milliseconds=1)

K = TypeVar("K", bound=Hashable, default=UUID)
V_co = TypeVar("V_co", covariant=True)


class Source(Protocol[V_co, K]):
    """Where values are loaded from, such as a ``DocumentStore``."""

    async def fetch(self, ids: Sequence[K], *, for_update: bool = False) -> Mapping[K, V_co]:
        """Those that exist."""
        ...


REMEMBERED_LOADS = 256


class Filler(Generic[V, K]):
    """Loads documents of one kind, and fills their cache and tier."""

    def __init__(
        self,
        name: str,
        spec: CacheSpec,
        store: Source[V, K],
        pointers: PointerCache,
        codec: Codec[V],
        tier: Tier[V] | None,
        journal: Journals,
        counters: CacheCounters,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._spec = spec
        self._store = store
        self._pointers = pointers
        self._codec = codec
        self._tier = tier
        self._journal = journal
        self._counters = counters
        self._dice = dice
        self.on_load: Callable[[float], None] | None = None
        """Told how many seconds each query took."""
        self.loads: deque[float] = deque(maxlen=REMEMBERED_LOADS)
        """Seconds that the last queries took."""

    async def load(self, pk: K, *, for_update: bool = False) -> V:
        """The document from the source; raises ``NotFoundError``."""
        found = await self.load_many((pk,), for_update=for_update)
        if pk not in found:
            raise not_found(self._name, (pk,))
        return found[pk]

    async def load_many(self, ids: Sequence[K], *, for_update: bool = False) -> Mapping[K, V]:
        """Those documents that exist, from the source."""
        self._counters.source_reads += 1
        began = time.monotonic()
        try:
            return await self._store.fetch(ids, for_update=for_update)
        finally:
            took = time.monotonic() - began
            self._counters.load_seconds += took
            self.loads.append(took)
            if self.on_load is not None:
                self.on_load(took)

    def leased(self, addresses: Sequence[str], token: str) -> HeldLease:
        """Hold leases (or a right to refresh) for the length of a ``with`` block."""
        return HeldLease(self._pointers, addresses, token)

    async def fill(self, lease: HeldLease, documents: Mapping[str, V]) -> bool:
        """Store what was loaded under a lease; whether all of it was.

        What this process wrote meanwhile, and could not tell the cache of, is left out.
        """
        load = time.monotonic() - lease.since
        fills = [
            fill
            for address, document in documents.items()
            if not (self._journal.active and self._journal.bypasses(address))
            and (fill := self._filling(address, lease.token, document, load)) is not None
        ]
        if not fills:
            return False
        kept = _Kept(self._tier, fills, documents)
        stored: Sequence[bool] = ()
        try:
            stored = await self._pointers.fill([fill for fill, _ in fills])
        except ForzeError:
            self._counters.fill_failures += len(fills)
            return False
        finally:
            kept.answered(stored)
        lease.ended([fill.address for fill, _ in fills])
        self._counters.fills += sum(stored)
        self._counters.rejected_fills += len(stored) - sum(stored)
        return all(stored) and len(fills) == len(documents)

    def _filling(
        self, address: str, token: str, document: V, load: float
    ) -> tuple[Fill, bytes] | None:
        """What is stored of a document, and its bare body."""
        body = self._codec.encode(document)
        if body is None or len(body) > self._pointers.max_value_bytes:
            self._counters.uncacheable += 1
            return None
        spec, dice = self._spec, self._dice()
        stored = body if spec.early_refresh_beta is None else seal(body, round(load * 1000) or 1)
        life = lifetime(spec, self._codec.changed_at(document), utcnow(), dice)
        read = window(spec, life, dice)
        window_ms = 0 if read is None else max(1, read // _MILLISECOND)
        life_ms = max(1, life // _MILLISECOND)
        version = self._codec.version(document)
        return Fill(address, token, version, stored, life_ms, window_ms), body


class _Kept(Generic[V]):
    """The tier's side of a fill: marks set as it is sent, entries kept as it is answered."""

    def __init__(
        self,
        tier: Tier[V] | None,
        fills: Sequence[tuple[Fill, bytes]],
        documents: Mapping[str, V],
    ) -> None:
        self._tier = tier
        self._marked: list[tuple[Key, float, V, bytes]] = []
        if tier is not None:
            for fill, body in fills:
                document = documents[fill.address]
                key = tier.key_at(fill.address)
                assert key is not None
                self._marked.append((key, tier.reserve(key), document, body))

    def answered(self, stored: Sequence[bool]) -> None:
        """Keep what was stored; nothing where the answer did not come."""
        if self._tier is None:
            return
        for place, (key, mark, document, body) in enumerate(self._marked):
            accepted = place < len(stored) and stored[place]
            if not (accepted and self._tier.take(key, mark, document, body)):
                self._tier.forget(key)


class HeldLease:
    """Leases while their documents are loaded: renewed every second, given back at the end."""

    __slots__ = ("_addresses", "_pointers", "_timer", "since", "token")

    def __init__(self, pointers: PointerCache, addresses: Sequence[str], token: str) -> None:
        self._pointers = pointers
        self._addresses = set(addresses)
        self._timer: asyncio.TimerHandle | None = None
        self.since = time.monotonic()
        self.token = token

    def __enter__(self) -> HeldLease:
        if self._addresses:
            self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._addresses:
            self._pointers.give_back(list(self._addresses), self.token)

    def ended(self, addresses: Sequence[str]) -> None:
        """These were filled, or refused: there is no lease left to give back."""
        self._addresses.difference_update(addresses)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(RENEW_MS / 1000, self._renew)

    def _renew(self) -> None:
        self._pointers.renew(list(self._addresses), self.token)
        self._arm()


def not_found(name: str, ids: Sequence[Hashable]) -> NotFoundError:
    """The error for documents that do not exist."""
    listed = ", ".join(str(each) for each in ids[:5])
    if len(ids) > 5:
        listed += f" and {len(ids) - 5} more"
    return NotFoundError(
        f"{name}: no document {listed}; it was never created, or has been removed",
        resource=name,
        ids=ids,
    )
