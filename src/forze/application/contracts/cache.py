"""Caches: the spec, the port for direct use, and the pointer operations the read-through needs.

Two surfaces of one cache. :class:`CachePort` is for applications: values in, values out.
:class:`PointerCache` is for the document read-through: one pointer per document carries
its whole state, and each operation is one atomic transition of it (the states and their
meaning: ``forze.application.integrations.document.protocol``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from math import inf
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from forze.application.contracts.deps import DepKey, Factory
from forze.errors import ConfigurationError

JsonValue: TypeAlias = Any
"""Anything JSON can hold: None, bool, int, float, str, list, dict with str keys."""

OnOutage = Literal["proceed", "refuse"]


def _positive(owner: str, name: str, value: object) -> None:
    if not isinstance(value, timedelta):
        raise ConfigurationError(
            f"{owner}: {name} must be a timedelta, not {value!r}; "
            f"write {name}=timedelta(seconds=...)",
            name=name,
        )
    if value <= timedelta(0):
        raise ConfigurationError(f"{owner}: {name} must be above zero, not {value}", name=name)


def _above_zero(owner: str, name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 < value < inf):  # type: ignore[operator]
        raise ConfigurationError(
            f"{owner}: {name} must be a number above zero, not {value!r}", name=name
        )


def _switch(owner: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{owner}: {name} is True or False, not {value!r}", name=name)


def _either(owner: str, name: str, value: object, right: bool) -> None:
    """None, or what ``name`` is for."""
    if value is not None and not right:
        wanted = {"l1": "an L1Spec", "age_ttl": "an AgeBasedTtl"}.get(
            name, "a function of the L1Spec (lru_l1_store, tiny_lfu_l1_store)"
        )
        raise ConfigurationError(
            f"{owner}: {name} must be {wanted} or None, not {value!r}", name=name
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class L1Spec:
    """An in-process tier in front of the cache: at most ``capacity`` documents for ``ttl`` each."""

    ttl: timedelta
    capacity: int = 1024
    store_factory: Callable[[L1Spec], Any] | None = None

    def __post_init__(self) -> None:
        _positive("L1Spec", "ttl", self.ttl)
        if type(self.capacity) is not int or self.capacity < 1:
            raise ConfigurationError(
                f"L1Spec: capacity must be a whole number of documents, at least 1, not "
                f"{self.capacity!r}",
                name="capacity",
            )
        _either("L1Spec", "store_factory", self.store_factory, callable(self.store_factory))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeBasedTtl:
    """Lifetimes by age: ``alpha`` times the time since ``last_update_at``, within the bounds."""

    alpha: float = 0.1
    min_ttl: timedelta = timedelta(seconds=30)
    max_ttl: timedelta = timedelta(hours=1)

    def __post_init__(self) -> None:
        _positive("AgeBasedTtl", "min_ttl", self.min_ttl)
        _positive("AgeBasedTtl", "max_ttl", self.max_ttl)
        _above_zero("AgeBasedTtl", "alpha", self.alpha)
        if self.max_ttl < self.min_ttl:
            raise ConfigurationError(
                f"AgeBasedTtl: max_ttl {self.max_ttl} is below min_ttl {self.min_ttl}",
                name="max_ttl",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """What is wanted of a cache. ``name`` selects the registered backend.

    ``ttl`` is how long an entry lives; ``ttl_pointer`` None means the same. The rest are
    opt-ins: early refresh, an in-process tier, sliding and age-based lifetimes.
    Combinations that cannot work raise :class:`ConfigurationError` here.
    """

    name: str
    ttl: timedelta = timedelta(seconds=300)
    ttl_pointer: timedelta | None = None
    early_refresh_beta: float | None = None
    early_refresh_background: bool = False
    l1: L1Spec | None = None
    sliding_ttl: timedelta | None = None
    age_ttl: AgeBasedTtl | None = None

    def __post_init__(self) -> None:
        owner = f"CacheSpec {self.name!r}"
        if not self.name:
            raise ConfigurationError("CacheSpec: name is empty", name="name")
        _positive(owner, "ttl", self.ttl)
        for name in ("ttl_pointer", "sliding_ttl"):
            if getattr(self, name) is not None:
                _positive(owner, name, getattr(self, name))
        if self.early_refresh_beta is not None:
            _above_zero(owner, "early_refresh_beta", self.early_refresh_beta)
        _either(owner, "l1", self.l1, isinstance(self.l1, L1Spec))
        _either(owner, "age_ttl", self.age_ttl, isinstance(self.age_ttl, AgeBasedTtl))
        _switch(owner, "early_refresh_background", self.early_refresh_background)
        if self.early_refresh_background and self.early_refresh_beta is None:
            raise ConfigurationError(
                f"{owner}: early_refresh_background needs early_refresh_beta (1.0 is usual)",
                name="early_refresh_background",
            )
        cap, its_name = self._cap()
        if self.sliding_ttl is not None and self.sliding_ttl >= cap:
            raise ConfigurationError(
                f"{owner}: sliding_ttl {self.sliding_ttl} must be below {its_name} {cap}, its cap",
                name="sliding_ttl",
            )
        for bound, name in ((cap, its_name), (self.sliding_ttl, "sliding_ttl")):
            if self.l1 is not None and bound is not None and self.l1.ttl >= bound:
                raise ConfigurationError(
                    f"{owner}: the L1 ttl {self.l1.ttl} must be below {name} {bound}", name="l1"
                )

    def _cap(self) -> tuple[timedelta, str]:
        """The longest an entry can live, and the option that says so."""
        if self.age_ttl is not None:
            return self.age_ttl.max_ttl, "age_ttl.max_ttl"
        if self.ttl_pointer is not None and self.ttl_pointer < self.ttl:
            return self.ttl_pointer, "ttl_pointer"
        return self.ttl, "ttl"


class CachePort(Protocol):
    """A cache for direct use. Keys are text; values anything JSON can hold, or ``bytes``.

    ``bytes`` come back as the same bytes. A value that is not there is None from
    :meth:`get` (store a wrapper if None itself matters). Each call is one round trip;
    calls on many keys are one round trip per hundred.
    """

    async def get(self, key: str) -> JsonValue | bytes | None:
        """The value of ``key``: a versioned one (documents included) before a plain one."""
        ...

    async def get_many(self, keys: Sequence[str]) -> tuple[dict[str, JsonValue | bytes], list[str]]:
        """``(hits, missing)``: values by key, and the keys without one, in the order asked."""
        ...

    async def exists(self, key: str) -> bool:
        """Whether :meth:`get` would find a value."""
        ...

    async def set(
        self, key: str, value: JsonValue | bytes, *, ttl: timedelta | None = None
    ) -> None:
        """Store a plain value for ``ttl`` (default: the spec's)."""
        ...

    async def set_many(
        self, values: Mapping[str, JsonValue | bytes], *, ttl: timedelta | None = None
    ) -> None:
        """:meth:`set` for each pair."""
        ...

    async def set_versioned(
        self, key: str, version: str, value: JsonValue | bytes, *, ttl: timedelta | None = None
    ) -> bool:
        """Store a value under a version; whether it was stored.

        False while a write of the key is in flight, or over a higher numeric version.
        """
        ...

    async def set_many_versioned(
        self,
        values: Mapping[tuple[str, str], JsonValue | bytes],
        *,
        ttl: timedelta | None = None,
    ) -> dict[tuple[str, str], bool]:
        """:meth:`set_versioned` for each ``(key, version)``; which were stored."""
        ...

    async def invalidate(self, key: str) -> None:
        """Remove whatever :meth:`get` would find. In a transaction it takes effect at commit."""
        ...

    async def invalidate_many(self, keys: Iterable[str]) -> None:
        """:meth:`invalidate` for each key."""
        ...

    async def delete(self, key: str, *, hard: bool = True) -> bool:
        """Remove the value; whether there was one. ``hard`` removes stored bodies too. In a
        transaction it takes effect at commit."""
        ...

    async def invalidate_tags(self, *tags: str) -> None:
        """Invalidate every cached call that carries one of these tags (of the bound tenant).

        Once it has returned, no value whose load began before is served. In a transaction it
        takes effect at commit, and until then nobody caches what carries one. One round trip.
        """
        ...

    def pointers(self, fingerprint: str) -> PointerCache:
        """The pointer operations over the same keys, for readers of one model schema."""
        ...

    def tags(self) -> CacheTags:
        """The tags of cached calls kept here; the same object every time."""
        ...


class Miss(Enum):
    """Why a read returned no body, and with it what the reader may do."""

    LEASED = "leased"  # nothing there; the reader's token now holds the lease: load and fill
    HELD = "held"  # another reader is loading: wait a bounded time, or read without filling
    INTENT = "intent"  # writes in flight: read the source, do not fill
    LARGE = "large"  # there, but too large for the shared connection: `read_large`
    AWAY = "away"  # its server does not answer, others did: read the source, do not fill


class Aging(NamedTuple):
    """A hit whose reader may refresh it early: nobody does yet."""

    body: bytes
    remaining_ms: int


class Fill(NamedTuple):
    """One document to store: where, under which token and version, for how long.

    It lives for ``window_ms`` after it was last read (0: no matter), for ``life_ms`` at most.
    """

    address: str
    token: str
    version: int
    body: bytes
    life_ms: int
    window_ms: int = 0


class Entry(NamedTuple):
    """What a cache has of one document, looked at without touching it."""

    state: Literal["value", "lease", "intent", "absent"]
    left_ms: int = 0
    """Until the state ends by itself: a value dies, a lease or the last intent lapses."""
    version: str | None = None
    """Of a value."""
    size_bytes: int | None = None
    """Of a value's body; None where that is gone."""
    body_left_ms: int = 0
    """Until the body dies unless it is read: less than ``left_ms`` where lives slide."""
    refreshing: bool = False
    """Whether some reader is replacing the value early."""
    writers: int = 0
    """Writes in flight."""
    same_generation: bool = True
    same_schema: bool = True
    """Whether it was left by the server as it is now, and by readers of the same model. Else it
    is nothing to readers, unless it is an intent."""

    @property
    def readable(self) -> bool:
        """Whether a read would hit it."""
        ours = self.same_generation and self.same_schema
        return self.state == "value" and ours and self.size_bytes is not None


class PointerCache(Protocol):
    """Atomic operations on pointers, for the readers of one schema. One round trip each.

    An *address* names one document of one namespace and tenant; no two share one. Every
    method may raise :class:`~forze.errors.BackendError`; an error of a mutating call
    leaves its effect unknown, and each is safe to repeat.
    """

    @property
    def on_outage(self) -> OnOutage:
        """Whether a write goes on when the cache cannot be told of it."""
        ...

    @property
    def max_value_bytes(self) -> int:
        """Bodies above this are not stored."""
        ...

    @property
    def tenant_aware(self) -> bool:
        """Whether each tenant has entries of its own."""
        ...

    @property
    def one_namespace(self) -> bool:
        """Whether every tenant's entries are in one namespace, to be cleared together."""
        ...

    def token(self, address: str | None = None) -> str:
        """A new token for one read: unique, and worthless after a reconnect.

        ``address`` is (one of) what will be read: where tenants have servers of their own, it
        tells whose connection that is.
        """
        ...

    def address(self, key: str) -> str:
        """The address of ``key`` under the bound tenant; raises ``TenantRequired`` without one."""
        ...

    def read(self, address: str, token: str) -> Awaitable[bytes | Aging | Miss]:
        """The current body; where there is none, the lease under ``token`` if it is free.

        A body in an envelope comes as :class:`Aging` where the cache's spec has
        ``early_refresh_beta`` and no reader is refreshing it. Where the spec has
        ``sliding_ttl``, a hit prolongs the body's life.
        """
        ...

    def read_many(
        self, addresses: Sequence[str], token: str
    ) -> Awaitable[list[bytes | Aging | Miss]]:
        """:meth:`read` for each address, answered in their order."""
        ...

    def read_large(self, address: str) -> Awaitable[bytes | None]:
        """The current body, of any size, off the shared connection; takes no lease."""
        ...

    def inspect(self, address: str) -> Awaitable[Entry]:
        """What is there; changes nothing, and counts as no read."""
        ...

    def elect(self, address: str, token: str) -> Awaitable[bool]:
        """Give ``token`` the right to refresh a current value early, for as long as a lease;
        whether it got it: one reader at a time does, and everyone else still hits."""
        ...

    def fill(self, fills: Sequence[Fill]) -> Awaitable[list[bool]]:
        """Store each body whose token still holds its pointer; which were stored."""
        ...

    def renew(self, addresses: Sequence[str], token: str) -> None:
        """Prolong the leases and refreshes still held under ``token``. Not awaited."""
        ...

    def give_back(self, addresses: Sequence[str], token: str) -> None:
        """Drop the leases and refreshes held under ``token``; a value stays. Not awaited; a
        lost one lapses by itself."""
        ...

    def intend(self, addresses: Sequence[str], write_id: str) -> Awaitable[None]:
        """Announce (or renew) a write: no reader may hit or fill until it is done or lapses."""
        ...

    def done(self, addresses: Sequence[str], write_id: str) -> Awaitable[None]:
        """End a write: its intent goes; what was cached before it is gone for good."""
        ...

    def namespace(self, address: str | None = None) -> str:
        """The namespace an address is in; without one, where new addresses are (a namespace
        may depend on the bound tenant)."""
        ...

    def clear(self, namespace: str) -> Awaitable[int]:
        """Remove every pointer of a namespace, tenants included; how many."""
        ...

    def on_recovery(self, callback: Callable[[], None]) -> None:
        """Call back whenever the server answers again after it did not."""
        ...

    def owing(self, namespace: str, owes: bool) -> None:
        """Take note that this process begins, or ceases, to owe the server of ``namespace`` an
        invalidation, and needs to hear of its recovery until then."""
        ...

    def watch(self, tier: CacheInvalidation) -> None:
        """Tell ``tier`` from now on of every entry this process changes, as the change is sent
        and as it is answered (reads and fills apart: the reader knows of those), and of
        everyone's changes where the cache is configured with pushes. Holds ``tier`` weakly."""
        ...

    def available(self, place: str | None = None) -> bool:
        """False while calls would fail at once because the server is known to be away: where
        there are several that of ``place`` (an address, or a namespace: any that holds some of
        it), without one any of them."""
        ...


class CacheTags(Protocol):
    """The tags of one cache's calls."""

    @property
    def pointers(self) -> PointerCache:
        """The pointer operations on tags, and on calls."""
        ...

    def address(self, tag: str) -> str:
        """The address of a tag under the bound tenant."""
        ...

    async def invalidate(self, tags: Iterable[str]) -> None:
        """As ``CachePort.invalidate_tags``."""
        ...

    def owed(self, addresses: Iterable[str]) -> bool:
        """Whether the cache has still to be told that one of these tags was invalidated."""
        ...

    def follow(self, tier: CacheInvalidation) -> None:
        """Have ``tier`` dropped from what the cache could not be told of. Holds it weakly."""
        ...


class CacheInvalidation(Protocol):
    """An in-process tier of decoded documents, as its cache sees it: told what holds no longer."""

    def drop(self, addresses: Iterable[str], *, pushed: bool = False) -> None:
        """These entries changed, or are about to: by a write of this process, or ``pushed``."""
        ...

    def flush(self) -> None:
        """Any entry may have changed unnoticed."""
        ...

    def trust(self, until: float, bound_seconds: float) -> None:
        """Entries may be served until then, on :func:`time.monotonic`: infinity where their own
        lifetime is the bound, the past while pushes may be getting lost. At most
        ``bound_seconds`` pass between a change and the drop of its entry."""
        ...


CACHED: CacheSpec = CacheSpec(name="cached")
"""Where calls of cached functions are kept unless they say otherwise."""

CacheDepKey: DepKey[Factory[CacheSpec, CachePort]] = DepKey("cache")
