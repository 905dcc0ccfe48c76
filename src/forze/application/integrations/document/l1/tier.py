"""The in-process tier of one document kind: which entries may stand, and until when.

Where entries are kept and which of them go first is the store's affair (``lru``,
``tiny_lfu``). Here is what keeps an entry from being older than the change that removed it::

    reserve ──► a mark of its own, before the read is sent; whatever stood there is gone
    take    ──► the value goes in, if that very mark still stands
    drop    ──► entry and mark go: a local write, a push
    flush   ──► all of them go: pushes may have been lost

A mark that is gone means that something changed after the question was put, and that the
answer may predate it. Marks are not shared: of reads under way together, the first to ask keeps
its answer. A mark is the moment it was made, so that an answer that lay unread while the process
stood still is not taken for a new one.

Under pushes the tier serves only while it is *trusted*: the event loop has lately looked at
the socket the pushes arrive on. A process that stood still trusts nothing it kept.

Source: Redis documentation, client-side caching (the placeholder against the race of reply
and push).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from math import inf
from time import monotonic
from typing import Any, Final, Generic, TypeAlias, cast
from uuid import UUID

from forze.application.contracts.tenancy import TENANT
from forze.application.integrations.document.codec import Codec, V
from forze.application.integrations.document.l1.store import L1Store, PeekableL1Store

Key: TypeAlias = "bytes | tuple[str, bytes] | str"
"""A document's id, behind what stands before it in its address where that depends on a tenant;
of other entries the address itself (``cached.tier``)."""

ID_CHARS: Final = 36
KNOWN_TENANTS: Final = 10_000

LATE_SHARE: Final = 0.25
LATE_SECONDS: Final = 0.25
"""An answer that took longer than this, or than this share of the entry's ttl, is not kept."""


class Tier(Generic[V]):
    """The entries of one document kind in this process. Implements ``CacheInvalidation``.

    ``prefixes`` is None where an id alone names a document; else it has, for each tenant seen,
    what stands before the id in an address.
    """

    __slots__ = (
        "__weakref__",
        "_late_seconds",
        "_marks",
        "bound_seconds",
        "decode",
        "find",
        "flushes",
        "prefixes",
        "pushed",
        "shared",
        "store",
        "trusted_until",
    )

    def __init__(
        self, store: L1Store, codec: Codec[V], *, ttl: timedelta, tenant_aware: bool
    ) -> None:
        self.store = store
        self.find = store.get
        self.shared = codec.shareable
        self.decode = codec.decode
        self._marks: dict[Key, float] = {}
        self._late_seconds = min(LATE_SECONDS, LATE_SHARE * ttl.total_seconds())
        self.prefixes: dict[str | None, str] | None = {} if tenant_aware else None
        self.trusted_until = self.bound_seconds = inf
        self.pushed = 0
        self.flushes = 0

    def key(self, pk: Any, address: str) -> Key:
        """The key of the document ``pk``, a UUID, at ``address``."""
        number: bytes = pk.int.to_bytes(16, "big")
        if self.prefixes is None:
            return number
        prefix, _ = _apart(address)
        tenant = TENANT.get()
        if tenant not in self.prefixes:
            if len(self.prefixes) >= KNOWN_TENANTS:
                self.prefixes.clear()
            self.prefixes[tenant] = prefix
        return prefix, number

    def get(self, key: Key) -> V | None:
        """The entry of ``key``, if the tier may serve it."""
        if monotonic() >= self.trusted_until:
            return None
        kept = self.find(key)
        if kept is None or self.shared:
            return cast("V | None", kept)
        return self.decode(cast(bytes, kept))

    def peek(self, key: Key) -> tuple[V, float] | None:
        """The entry of ``key``, served or not, and the seconds it has left; counts as no read.
        None as well where the store cannot be looked into."""
        store = self.store
        kept = store.peek(key) if isinstance(store, PeekableL1Store) else None
        if kept is None:
            return None
        value, left = kept
        return (cast(V, value) if self.shared else self.decode(cast(bytes, value))), left

    # -- entries come ----------------------------------------------------------

    def reserve(self, key: Key) -> float:
        """A mark for what is about to be asked; whatever stood there is gone.

        It stands only if no other does, or one whose answer would come too late.
        """
        mark, standing = monotonic(), self._marks.get(key)
        if standing is None or mark - standing > self._late_seconds:
            self._marks[key] = mark
            self.store.invalidate(key)
        return mark

    def take(self, key: Key, mark: float, document: V, body: bytes) -> bool:
        """Keep the answer if its mark still stands; whether it is kept."""
        if self._marks.get(key) is not mark:
            return False
        del self._marks[key]
        now = monotonic()
        if now >= self.trusted_until or now - mark > self._late_seconds:
            return False
        self.store.set(key, self.kept(key, document, body))
        return True

    def kept(self, key: Key, document: V, body: bytes) -> object:
        """What is stored of an answer."""
        return document if self.shared else body

    def withdraw(self, key: Key, mark: float) -> None:
        """The question ended without an answer to keep."""
        if self._marks.get(key) is mark:
            del self._marks[key]

    # -- entries go ------------------------------------------------------------

    def forget(self, key: Key) -> None:
        """Drop one entry, and the mark of whoever is asking for it."""
        self._marks.pop(key, None)
        self.store.invalidate(key)

    def drop(self, addresses: Iterable[str], *, pushed: bool = False) -> None:
        """Drop the entries at these addresses, and the marks of whoever is asking for them."""
        for address in addresses:
            key = self.key_at(address)
            if key is not None:
                self.pushed += pushed
                self.forget(key)

    def flush(self) -> None:
        """Drop everything."""
        self.flushes += 1
        self._marks.clear()
        self.store.clear()

    def trust(self, until: float, bound_seconds: float) -> None:
        """Entries may be kept and served until then, on :func:`time.monotonic`."""
        self.trusted_until = until
        self.bound_seconds = bound_seconds

    def key_at(self, address: str) -> Key | None:
        """The key of what is at ``address``; None where that is no document."""
        prefix, text = _apart(address)
        try:
            number = UUID(hex=text).bytes
        except ValueError:
            return None
        return number if self.prefixes is None else (prefix, number)


def _apart(address: str) -> tuple[str, str]:
    """What stands before the id in an address, and the id, which may be in braces (a hash tag)."""
    end = len(address) - address.endswith("}")
    return address[: end - ID_CHARS], address[end - ID_CHARS : end]
