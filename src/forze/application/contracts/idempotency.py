"""Idempotency: an operation runs once per key, and its answer is given again.

A request claims its key before it runs and commits its answer after. Two times matter: the
*lease*, short and kept up while the work is being done, after which a crashed owner's key
can be taken over; and the *retention* (``ttl``), for which the answer is kept.

| record | event | then | the caller |
|---|---|---|---|
| none | begin | pending, generation 1 | runs |
| pending, lease live | begin by another | same | waits, then ``IdempotencyInProgress`` |
| pending, lease lapsed | begin | pending, generation + 1 | runs |
| pending or completed | begin, other payload | same | ``IdempotencyMismatch`` |
| pending | commit by owner and generation | completed | is answered |
| pending | commit by a stale owner | same | is answered, and told |
| pending | fail, cancelled, disconnected | free | the next begin runs, generation + 1 |
| completed | begin | same | is given the answer again |
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Literal, Protocol, TypeVar

from forze.application.contracts.deps import DepKey, Factory
from forze.errors import ConfigurationError, ValidationError

T = TypeVar("T")

REPLAYED_HEADERS = (
    "content-language",
    "content-encoding",
    "content-disposition",
    "location",
    "etag",
    "last-modified",
    "link",
    "cache-control",
)
"""The headers of an answer that are stored and given again, unless the spec names others."""

SECRET_HEADERS = frozenset(
    {"set-cookie", "cookie", "authorization", "proxy-authorization", "www-authenticate"}
)
"""Never stored: an answer given again may go to another session of the same principal."""

_SHORTEST_LEASE = timedelta(milliseconds=50)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencySpec:
    """One family of idempotent operations.

    ``ttl``: how long an answer is kept. ``lease``: how long a claim outlives its owner; kept
    up every third of it while the owner works, for ``max_hold`` at most. ``wait``: how long
    a duplicate waits for the answer of the one that runs; None refuses it at once, and it is
    told to come back after ``retry_hint`` or when the lease ends, whichever is sooner.

    ``store``: status codes to keep beyond 2xx and 3xx; any other answer frees the key.
    ``headers``: the names of headers that are kept with an answer. ``fail``: while the store
    is away, ``"closed"`` refuses to run and ``"open"`` runs without protection.
    """

    name: str
    ttl: timedelta = timedelta(hours=24)
    lease: timedelta = timedelta(seconds=30)
    wait: timedelta | None = None
    retry_hint: timedelta = timedelta(seconds=1)
    max_hold: timedelta = timedelta(hours=1)
    store: Collection[int] = ()
    headers: Collection[str] = REPLAYED_HEADERS
    fail: Literal["closed", "open"] = "closed"

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"IdempotencySpec: name must be text that is not empty, not {name!r}", name="name"
            )
        self._check_times()
        if self.fail not in ("closed", "open"):
            raise self._wrong("fail", 'is "closed" or "open"')
        codes = self._several("store", int)
        if not all(100 <= code <= 599 for code in codes):
            raise self._wrong("store", "holds HTTP status codes, 100 to 599")
        names = frozenset(each.lower() for each in self._several("headers", str))
        if secret := sorted(names & SECRET_HEADERS):
            raise self._wrong("headers", f"must not hold {secret[0]}, which is never replayed")
        object.__setattr__(self, "store", codes)
        object.__setattr__(self, "headers", names)

    def _check_times(self) -> None:
        for field in ("ttl", "lease", "retry_hint", "max_hold"):
            value: object = getattr(self, field)
            least = _SHORTEST_LEASE if field == "lease" else timedelta(milliseconds=1)
            if not isinstance(value, timedelta) or value < least:
                raise self._wrong(field, f"must be a timedelta of at least {least}")
        wait: object = self.wait
        if wait is not None and (not isinstance(wait, timedelta) or wait < timedelta(0)):
            raise self._wrong("wait", "must be a timedelta that is not negative, or None")

    def _several(self, field: str, kind: type[T]) -> frozenset[T]:
        values: object = getattr(self, field)
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise self._wrong(field, "takes several values")
        found = tuple(values)
        if not all(isinstance(each, kind) and not isinstance(each, bool) for each in found):
            raise self._wrong(field, f"holds values of type {kind.__name__}")
        return frozenset(found)

    def _wrong(self, field: str, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"IdempotencySpec {self.name!r}: {field} {what}, not {getattr(self, field)!r}",
            name=field,
        )

    @property
    def pending_ttl(self) -> timedelta:
        """How long a record is kept while it is pending."""
        return max(self.ttl, self.lease)

    def stores(self, status_code: int) -> bool:
        """Whether an answer with this status is kept."""
        return 200 <= status_code < 400 or status_code in self.store

    def kept(self, snapshot: IdempotencySnapshot) -> IdempotencySnapshot:
        """``snapshot`` with the headers that may be given again."""
        headers = tuple(each for each in snapshot.headers if each[0].lower() in self.headers)
        return IdempotencySnapshot(
            snapshot.status_code, snapshot.content_type, snapshot.body, headers
        )


@dataclass(frozen=True, slots=True)
class IdempotencySnapshot:
    """An answer: status, content type (None: it has no body), body, and further headers.

    ``headers`` may be given as a mapping; they are pairs of name and value, in order.
    """

    status_code: int
    content_type: str | None
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        status: object = self.status_code
        if not isinstance(status, int) or not 100 <= status <= 599:
            raise ValidationError(
                f"an IdempotencySnapshot's status_code is 100 to 599, not {status!r}",
                field="status_code",
            )
        content_type: object = self.content_type
        if content_type is not None and not isinstance(content_type, str):
            raise ValidationError(
                f"an IdempotencySnapshot's content_type is text or None, not {content_type!r}",
                field="content_type",
            )
        body: object = self.body
        if not isinstance(body, bytes | bytearray | memoryview):
            raise ValidationError(
                f"an IdempotencySnapshot's body is bytes, not {type(body).__name__}", field="body"
            )
        object.__setattr__(self, "status_code", int(status))
        object.__setattr__(self, "body", bytes(body))
        object.__setattr__(self, "headers", _pairs(self.headers))


def _pairs(headers: Any) -> tuple[tuple[str, str], ...]:
    try:
        items = headers.items() if isinstance(headers, Mapping) else headers
        pairs = tuple((name, value) for name, value in items)
    except (TypeError, ValueError):
        pairs = ((None, None),)
    if not all(isinstance(part, str) for pair in pairs for part in pair):
        raise ValidationError(
            "an IdempotencySnapshot's headers are pairs of text, or a mapping", field="headers"
        )
    return pairs


class Commit(Enum):
    """What became of an answer that was committed. None of these is the caller's failure."""

    STORED = "stored"
    """Given again to every duplicate."""
    RELEASED = "released"
    """Its status is not one that is stored; the key is free."""
    FENCED_OUT = "fenced out"
    """The lease had lapsed and another took over: nothing was written."""
    DEFERRED = "deferred"
    """The store is away: storing is tried again in the background until the lease ends, and
    logged where it cannot be."""
    ENLISTED = "enlisted"
    """Follows the transaction that is open in this task: both stand, or neither."""
    UNCLAIMED = "unclaimed"
    """There is no claim to commit: ``fail="open"`` ran without one, or nothing was begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyStats:
    """What one port has seen in this process since it was made."""

    runs: int = 0
    replays: int = 0
    refusals: int = 0
    """Duplicates told that the operation is in progress."""
    mismatches: int = 0
    takeovers: int = 0
    fenced_out: int = 0
    deferred: int = 0
    unprotected: int = 0
    """Runs without a claim, because the store was away and ``fail="open"``."""


class IdempotencyClaim(Protocol):
    """The right to run one operation, while its lease lasts."""

    @property
    def replay(self) -> IdempotencySnapshot | None:
        """The stored answer, where there is one: give it again, and do not run."""
        ...

    @property
    def generation(self) -> int:
        """Rises with each run of the key: pass it as the fence of the effect. 0: no claim."""
        ...

    @property
    def takeover(self) -> bool:
        """Whether an earlier owner's lease lapsed: its effects may be there in part."""
        ...

    @property
    def lost(self) -> bool:
        """Whether another is known to have taken over."""
        ...

    async def complete(self, snapshot: IdempotencySnapshot, *, stands: bool = False) -> Commit:
        """The answer is final: see :meth:`IdempotencyPort.commit`. ``stands``: so is the effect,
        known to be there, and the answer is stored whatever its status."""
        ...


class IdempotencyPort(Protocol):
    """Runs each operation once per key. One round trip each for begin and for commit.

    ``operation`` and ``key`` are text of 1 to 255 bytes; the bound tenant (where the resource
    is tenant-aware) and principal scope them. ``payload_hash`` is any text that two payloads
    share exactly when they are the same (:func:`~.idempotency.payload_hash`).

    A claim belongs to the task that began it and those that this one starts afterwards, to the
    innermost :meth:`scope` around it where there is one. Left by an owner that was cancelled it
    is freed at once, by one that crashed when its lease lapses.
    """

    async def begin(
        self, operation: str, key: str, payload_hash: str
    ) -> IdempotencySnapshot | None:
        """The stored answer to give again, or None: run, then :meth:`commit` or :meth:`fail`.

        Raises ``IdempotencyInProgress`` while another runs it, ``IdempotencyMismatch`` where
        the key was used with another payload, ``ValidationError`` for a key that is empty or
        too long, ``TenantRequired``, and ``BackendUnavailable`` while the store is away
        (unless ``fail="open"``); then nothing may be run.
        """
        ...

    async def commit(
        self, operation: str, key: str, payload_hash: str, snapshot: IdempotencySnapshot
    ) -> Commit:
        """Store the answer of what this task began; what became of it.

        The work is done, so nothing here is its failure: an owner that was taken over is told
        ``FENCED_OUT``, and a store that is away is told later. Inside an open transaction the
        answer stands if and only if the transaction does; on a database that keeps both, an
        owner that was taken over raises ``FencedOut`` there, so that its effect goes too.
        """
        ...

    async def fail(self, operation: str, key: str, payload_hash: str) -> bool:
        """Free the key of what this task began; whether it was freed. Never raises for a
        store that is away: the lease ends by itself."""
        ...

    def claim(
        self, operation: str, key: str, payload_hash: str
    ) -> AbstractAsyncContextManager[IdempotencyClaim]:
        """:meth:`begin` as a block; left without :meth:`IdempotencyClaim.complete`, by an
        exception or a cancellation too, it frees the key at once."""
        ...

    def scope(self) -> AbstractAsyncContextManager[None]:
        """A block that owns the claims begun in it, by whichever task or thread that copied
        its context; what was neither committed nor failed at its end is freed."""
        ...

    async def run(
        self,
        operation: str,
        key: str,
        payload: object,
        function: Callable[..., Awaitable[T]],
        *args: Any,
        result: Any = None,
        **kwargs: Any,
    ) -> T:
        """``await function(*args, **kwargs)``, once per key; a duplicate gets its result again.

        Results are kept as JSON, and come back as ``result`` (default: the function's return
        annotation). An exception frees the key. A function that is not async is called all the
        same, and holds up the event loop.
        """
        ...

    def stats(self) -> IdempotencyStats:
        """Counts since the port was made."""
        ...


IdempotencyDepKey: DepKey[Factory[IdempotencySpec, IdempotencyPort]] = DepKey("idempotency")
"""What makes an idempotency port from its spec; registered under the name of the spec."""

__all__ = [
    "REPLAYED_HEADERS",
    "Commit",
    "IdempotencyClaim",
    "IdempotencyDepKey",
    "IdempotencyPort",
    "IdempotencySnapshot",
    "IdempotencySpec",
    "IdempotencyStats",
]
