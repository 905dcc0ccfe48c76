"""Tags: invalidating every cached call that carries one, whichever they are.

A tag is a pointer like any other (``document.protocol``), and what it points to is a *stamp*: a
random word, made by whoever finds none. A value is stored with the stamps its tags had before
its load began, and served only while they are the same::

    read        [entry, tag, tag, ...] in one command: the body, and the stamps as they stand
      equal  ─► served
      not    ─► one reader in the fleet is elected to replace it; to all others it is absent
    invalidate  the tag's pointer goes, as a document's does when it is written
                (in a transaction: announced before COMMIT, gone after it)

No stamp is ever made twice, so a stamp that stands when a value is read stood all the while
since its load began: no invalidation came between. That is the guarantee of documents, had for
nothing: a stamp is what is cached, and no invalidated one is read after its acknowledgement. A
tag that is evicted, expires or is flushed costs misses, never an old value.

On a cluster the pointers of an entry and of its tags are in other slots: a command for each,
sent together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from secrets import token_hex, token_urlsafe
from typing import Final, cast
from weakref import WeakSet

from forze.application.contracts.cache import (
    Aging,
    CacheInvalidation,
    CacheTags,
    Entry,
    Fill,
    Miss,
    OnOutage,
    PointerCache,
)
from forze.application.contracts.deps import Resolver
from forze.application.contracts.transaction import open_transactions
from forze.application.integrations.document.codec import SEAL_MARK
from forze.application.integrations.document.outage import Journals
from forze.application.integrations.document.stats import CacheCounters
from forze.application.integrations.document.writes import Invalidation, Outlet
from forze.errors import BackendUnavailable, ForzeError, ValidationError

SCHEMA: Final = "cached-1"
"""Stands for a model's schema in pointers of calls and tags, so that one command reads both; the
schema of a value is in the key of its call."""

STAMP_MARK: Final = b"\x02"
"""Begins the stamps before a tagged value's body."""

TAG: Final = "~tag:"
"""Begins the key of a tag; no call's key begins so."""

SHORTEST_LIFE: Final = timedelta(days=1)
"""A tag lives this long at least, and four times as long as the values it was made for."""

_MOST_LARGE: Final = 1_000


def check_tag(tag: object, where: str) -> str:
    """``tag``; raises ``ValidationError`` for what is none."""
    if not isinstance(tag, str) or not tag:
        raise ValidationError(
            f"{where}: a tag is text that is not empty, not {tag!r}", field="tags"
        )
    return tag


class Address(str):
    """The address of a call, which knows those of its tags."""

    __slots__ = ("tags",)

    tags: tuple[str, ...]

    def __new__(cls, address: str, tags: tuple[str, ...]) -> Address:
        self = super().__new__(cls, address)
        self.tags = tags
        return self


def tags_of(address: str) -> tuple[str, ...]:
    """The addresses of the tags of what is at ``address``."""
    return address.tags if isinstance(address, Address) else ()


class Tags:
    """The tags of one cache: invalidates them, and remembers what it could not tell of.

    Implements ``CacheInvalidation``, as what drops from every tier what carries a tag.
    """

    def __init__(self, pointers: PointerCache, resolver: Resolver) -> None:
        self.pointers = pointers
        self._resolver = resolver
        self._tiers: WeakSet[CacheInvalidation] = WeakSet()
        self._journal = Journals(pointers, resolver, tier=self)
        self._outlet = Outlet(pointers, self._journal, CacheCounters())

    def address(self, tag: str) -> str:
        """Where a tag is kept, under the bound tenant."""
        return self.pointers.address(TAG + tag)

    async def invalidate(self, tags: Iterable[str]) -> None:
        """No value whose load began before is served once this has returned."""
        addresses = [self.address(check_tag(each, "invalidate_tags")) for each in tags]
        await invalidated(self._outlet, addresses, self._resolver)

    def owed(self, addresses: Iterable[str]) -> bool:
        """Whether the cache has still to be told that one of these was invalidated."""
        return self._journal.active and any(map(self._journal.bypasses, addresses))

    def follow(self, tier: CacheInvalidation) -> None:
        """Drop from ``tier`` what the cache could not be told of."""
        self._tiers.add(tier)

    def drop(self, addresses: Iterable[str], *, pushed: bool = False) -> None:
        """Drop what carries these tags from every tier."""
        listed = list(addresses)
        for tier in tuple(self._tiers):
            tier.drop(listed, pushed=pushed)

    def flush(self) -> None:
        """Drop everything from every tier."""
        for tier in tuple(self._tiers):
            tier.flush()

    def trust(self, until: float, bound_seconds: float) -> None:
        """The tiers are told themselves."""


async def invalidated(outlet: Outlet, addresses: Sequence[str], resolver: Resolver) -> None:
    """Invalidate addresses: at once, or in a transaction, with its commit.

    Where the cache does not answer, they are owed to it (``on_outage="proceed"``), or
    ``BackendUnavailable`` is raised (``"refuse"``).
    """
    if not addresses:
        return
    transactions = open_transactions()
    for transaction in transactions:  # whichever of them changed what the values stand for
        Invalidation.of(transaction, resolver).announce(outlet, addresses)
    if transactions:
        return
    write_id, mark = token_hex(8), outlet.journal.now()
    try:
        await outlet.pointers.done(addresses, write_id)
    except ForzeError as error:
        if outlet.pointers.on_outage == "refuse":
            raise BackendUnavailable(
                "the cache could not be told of an invalidation: old values may be served up to "
                "their TTL; invalidate again when it answers",
                backend="cache",
                outcome="unknown",
            ) from error
        outlet.counters.intent_failures += 1
        outlet.journal.owe(addresses, write_id)
    else:
        outlet.journal.settled(addresses, mark, write_id)


class TaggedPointers:
    """Pointer operations on calls with tags. Implements ``PointerCache``.

    Where another's value carries old stamps, :meth:`read` answers as if nothing were there: with
    the lease (which is the right to replace it) for one reader, ``HELD`` for all others.
    """

    def __init__(self, pointers: PointerCache, tags: CacheTags, life: timedelta) -> None:
        self._pointers = pointers
        self._tags = tags
        self._life_ms = max(SHORTEST_LIFE, 4 * life) // timedelta(milliseconds=1)
        self._stamps: dict[str, bytes] = {}
        self._large: dict[str, bytes] = {}

    # -- reading ---------------------------------------------------------------

    async def read(self, address: str, token: str) -> bytes | Aging | Miss:
        elected = False
        while True:
            found, stamps = await self._look(address, token)
            if stamps is None:
                break
            if found is Miss.LEASED:
                self._stamps[token] = stamps
                return found
            if isinstance(found, Miss):
                if found is not Miss.LARGE or self._large.get(address, stamps) == stamps:
                    break
            else:
                carried, found = _apart(found)
                if carried == stamps:
                    break
            # What is there is older than an invalidation of one of its tags.
            if elected:
                if found is Miss.LARGE and await self.read_large(address) is not None:
                    break
                self._stamps[token] = stamps
                return Miss.LEASED
            if not await self._pointers.elect(address, token):
                return Miss.HELD
            elected = True  # somebody may have replaced it meanwhile: look again
        if elected:
            self._pointers.give_back((address,), token)
        return found

    async def _look(self, address: str, token: str) -> tuple[bytes | Aging | Miss, bytes | None]:
        """The value as it is stored, and its tags' stamps as they stand; without these, why the
        value can be neither served nor replaced."""
        tags = tags_of(address)
        if self._tags.owed(tags):
            return Miss.INTENT, None
        try:
            found, *states = await self._pointers.read_many((address, *tags), token)
            stamps = await self._stamped(tags, states, token)
        except BaseException:
            self._pointers.give_back(tags, token)
            raise
        if not isinstance(stamps, Miss):
            return found, stamps
        if found is Miss.LEASED:
            self._pointers.give_back((address,), token)
        return stamps, None

    async def read_many(self, addresses: Sequence[str], token: str) -> list[bytes | Aging | Miss]:
        return [await self.read(each, token) for each in addresses]

    async def read_large(self, address: str) -> bytes | None:
        """A body whose stamps are old is remembered as such for the next :meth:`read`."""
        tags = tags_of(address)
        token = self._pointers.token(address)
        try:
            states, body = await asyncio.gather(
                self._pointers.read_many(tags, token), self._pointers.read_large(address)
            )
            stamps = await self._stamped(tags, states, token)
        except BaseException:
            self._pointers.give_back(tags, token)
            raise
        if body is None or isinstance(stamps, Miss):
            return None
        carried, rest = _apart(body)
        if carried == stamps:
            self._large.pop(address, None)
            return rest if isinstance(rest, bytes) else rest.body
        if len(self._large) >= _MOST_LARGE:
            self._large.clear()
        self._large[address] = carried or b""
        return None

    async def _stamped(
        self, tags: Sequence[str], states: Sequence[bytes | Aging | Miss], token: str
    ) -> bytes | Miss:
        """The stamps as they stand, made where there were none; or what stands in their way."""
        held = {each for each in states if isinstance(each, Miss)}
        if not held:
            return b".".join(cast("Sequence[bytes]", states))
        missing = [tag for tag, state in zip(tags, states, strict=True) if state is Miss.LEASED]
        made = dict.fromkeys(missing, b"")
        if missing:
            made = {tag: token_urlsafe(9).encode() for tag in missing}
            fills = [Fill(tag, token, 1, stamp, self._life_ms) for tag, stamp in made.items()]
            if not all(await self._pointers.fill(fills)):
                return Miss.HELD  # invalidated just then: look again
        for miss in (Miss.INTENT, Miss.AWAY, Miss.LARGE, Miss.HELD):
            if miss in held:
                return Miss.AWAY if miss is Miss.LARGE else miss
        return b".".join(
            state if isinstance(state, bytes) else made[tag]
            for tag, state in zip(tags, states, strict=True)
        )

    # -- filling ---------------------------------------------------------------

    async def elect(self, address: str, token: str) -> bool:
        tags = tags_of(address)
        if self._tags.owed(tags):
            return False
        states = await self._pointers.read_many(tags, token)
        stamps = await self._stamped(tags, states, token)
        if isinstance(stamps, Miss) or not await self._pointers.elect(address, token):
            return False
        self._stamps[token] = stamps
        return True

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        """Accepted only if no tag changed until now: else the value is none for those who came
        after the change, though it waits for nobody (its stamps are old)."""
        stamps = [self._stamps.pop(each.token, b"?") for each in fills]
        for each in fills:
            self._large.pop(each.address, None)
        stamped = [
            each._replace(body=_together(stamp, each.body))
            for each, stamp in zip(fills, stamps, strict=True)
        ]
        stored, standing = await asyncio.gather(
            self._pointers.fill(stamped),
            asyncio.gather(*(self._standing(each.address) for each in fills)),
        )
        return [
            accepted and stamp == now
            for accepted, stamp, now in zip(stored, stamps, standing, strict=True)
        ]

    async def _standing(self, address: str) -> bytes | None:
        """The stamps of a call's tags as they stand; None where one has none."""
        tags = tags_of(address)
        if self._tags.owed(tags):
            return None
        token = self._pointers.token(address)
        states = await self._pointers.read_many(tags, token)
        if any(each is Miss.LEASED for each in states):
            self._pointers.give_back(tags, token)
        found = [each for each in states if isinstance(each, bytes)]
        return b".".join(found) if len(found) == len(tags) else None

    def renew(self, addresses: Sequence[str], token: str) -> None:
        self._pointers.renew(addresses, token)

    def give_back(self, addresses: Sequence[str], token: str) -> None:
        self._stamps.pop(token, None)
        self._pointers.give_back(addresses, token)

    # -- what tags change nothing about ----------------------------------------

    @property
    def on_outage(self) -> OnOutage:
        return self._pointers.on_outage

    @property
    def max_value_bytes(self) -> int:
        return self._pointers.max_value_bytes

    @property
    def tenant_aware(self) -> bool:
        return self._pointers.tenant_aware

    @property
    def one_namespace(self) -> bool:
        return self._pointers.one_namespace

    def token(self, address: str | None = None) -> str:
        return self._pointers.token(address)

    def address(self, key: str) -> Address:
        tags = tuple(map(self._tags.address, getattr(key, "tags", ())))
        return Address(self._pointers.address(str.__str__(key)), tags)

    def inspect(self, address: str) -> Awaitable[Entry]:
        return self._pointers.inspect(address)

    def intend(self, addresses: Sequence[str], write_id: str) -> Awaitable[None]:
        return self._pointers.intend(addresses, write_id)

    def done(self, addresses: Sequence[str], write_id: str) -> Awaitable[None]:
        return self._pointers.done(addresses, write_id)

    def namespace(self, address: str | None = None) -> str:
        return self._pointers.namespace(address)

    def clear(self, namespace: str) -> Awaitable[int]:
        return self._pointers.clear(namespace)

    def on_recovery(self, callback: Callable[[], None]) -> None:
        self._pointers.on_recovery(callback)

    def owing(self, namespace: str, owes: bool) -> None:
        self._pointers.owing(namespace, owes)

    def watch(self, tier: CacheInvalidation) -> None:
        self._tags.follow(tier)
        self._pointers.watch(tier)

    def available(self, place: str | None = None) -> bool:
        return self._pointers.available(place)


def _together(stamps: bytes, body: bytes) -> bytes:
    """A body with its stamps before it; an envelope stays outermost, where servers look for it."""
    cut = body.index(b"\n") + 1 if body.startswith(SEAL_MARK) else 0
    return b"%b%b%b\n%b" % (body[:cut], STAMP_MARK, stamps, body[cut:])


def _apart(found: bytes | Aging) -> tuple[bytes | None, bytes | Aging]:
    """The stamps of a stored body (None: it has none), and what is left without them."""
    body = found.body if isinstance(found, Aging) else found
    cut = body.find(b"\n") + 1 if body.startswith(SEAL_MARK) else 0
    if body[cut : cut + 1] != STAMP_MARK:
        return None, found
    stamps, _, rest = body[cut + 1 :].partition(b"\n")
    whole = body[:cut] + rest
    return stamps, Aging(whole, found.remaining_ms) if isinstance(found, Aging) else whole
