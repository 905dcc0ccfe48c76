"""The one tree of errors.

::

    ForzeError
    ├── ConfigurationError          wiring, specs, DSNs, schemas: fix the program
    ├── ValidationError             an argument that cannot be accepted
    ├── NotFoundError               no such document
    │   └── SnapshotGone            the search's snapshot has expired; search anew
    ├── ConflictError               the state forbids it (duplicate id, constraint)
    │   ├── RevisionMismatch        a stale ``rev``; carries the current one
    │   ├── TransactionDoomed       an inner block failed, the outer one cannot commit
    │   ├── FencedOut               a later holder has written already
    │   ├── LockNotAcquired         somebody else holds it, and the wait is over
    │   └── IdempotencyInProgress   the same operation is being run; ``retry_after``
    ├── LockLost                    the lease could not be trusted any longer
    ├── IdempotencyMismatch         the key was used with another payload
    ├── TenantRequired              a tenant-aware resource used with no tenant bound
    ├── Throttled                   try again after ``retry_after``
    ├── CircuitOpen                 what is called failed too often; not called for a while
    ├── BulkheadFull                too many calls of its kind are under way in this process
    ├── CallTimeout                 a call took longer than its policy allows
    └── BackendError                a server behind us
        ├── BackendTimeout          it did not answer in time
        ├── BackendUnavailable      it cannot be reached, or refuses work
        └── BackendCorrupt          it answered something that cannot be right

Every class carries data, not only text; ``retryable`` says whether the same call may
succeed later without a change; ``str()`` says what, where and what to do. A miss is a
value, never an error, and ``CancelledError`` is never wrapped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, ClassVar, Literal, Self, TypeVar

E = TypeVar("E", bound="ForzeError")

WriteOutcome = Literal["none", "committed", "unknown"]


class ForzeError(Exception):
    """Root of everything this library raises on its own account."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def again(self) -> Self:
        """An equal error with a traceback of its own, for a caller that shares a failure."""
        twin = _rebuild(type(self), self.args, self.__dict__)
        twin.__cause__ = self
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[E], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(ForzeError):
    """The program is wired wrongly; raised as early as it can be known.

    ``name`` is what was asked for, ``known`` what exists, where that makes sense.
    """

    def __init__(self, message: str, *, name: str | None = None, known: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.known = tuple(sorted(known))


class ValidationError(ForzeError):
    """An argument cannot be accepted; nothing was changed."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFoundError(ForzeError):
    """No document has this id (or these ids)."""

    def __init__(self, message: str, *, resource: str, ids: Iterable[object] = ()) -> None:
        super().__init__(message)
        self.resource = resource
        self.ids = tuple(str(each) for each in ids)


class SnapshotGone(NotFoundError):
    """The snapshot that a cursor belongs to exists no longer; the search has to begin anew."""

    def __init__(self, *, resource: str, run_id: str) -> None:
        super().__init__(
            f"{resource}: the search results that this cursor belongs to have expired (or were "
            "deleted); search again without it, or ask for them to be rebuilt",
            resource=resource,
            ids=(run_id,),
        )


class ConflictError(ForzeError):
    """The current state forbids the change; nothing was changed."""

    def __init__(self, message: str, *, resource: str | None = None) -> None:
        super().__init__(message)
        self.resource = resource


class RevisionMismatch(ConflictError):
    """The document was changed since it was read; ``current`` is its revision now."""

    def __init__(self, *, resource: str, id: object, expected: int, current: int) -> None:
        super().__init__(
            f"{resource} {id}: rev {expected} is stale, the current one is {current}; "
            "read the document again and repeat the change on top of it",
            resource=resource,
        )
        self.id = str(id)
        self.expected = expected
        self.current = current


class TransactionDoomed(ConflictError):
    """A block nested in this transaction failed, so it was rolled back instead of committed."""

    def __init__(self, route: str) -> None:
        super().__init__(
            f"transaction {route!r} was rolled back: a block nested in it was left by an "
            "exception; let that exception reach the outer block, or do not nest",
            resource=route,
        )
        self.route = route


class FencedOut(ConflictError):
    """A write carried an older fencing token than the resource has seen; nothing was changed."""

    def __init__(self, *, resource: str, id: object, token: int) -> None:
        super().__init__(
            f"{resource} {id}: fencing token {token} is older than the last one seen there, "
            "a later holder of the lock has written; take the lock again and start over",
            resource=resource,
        )
        self.id = str(id)
        self.token = token


class LockNotAcquired(ConflictError):
    """Somebody else holds ``key``; ``retry_after`` is the most that lease lasts unless extended."""

    retryable = True

    def __init__(
        self, message: str, *, resource: str, key: str, retry_after: timedelta | None = None
    ) -> None:
        super().__init__(message, resource=resource)
        self.key = key
        self.retry_after = retry_after


class IdempotencyInProgress(ConflictError):
    """Another request runs this operation under this key; ask again after ``retry_after``."""

    retryable = True

    def __init__(self, *, operation: str, key: str, retry_after: timedelta) -> None:
        super().__init__(
            f"operation {operation!r} with idempotency key {key!r} is being run by another "
            f"request; ask again in {retry_after.total_seconds():.1f} s for its result",
            resource=operation,
        )
        self.operation = operation
        self.key = key
        self.retry_after = retry_after


class IdempotencyMismatch(ForzeError):
    """The idempotency key was used before, with another payload."""

    def __init__(self, *, operation: str, key: str) -> None:
        super().__init__(
            f"operation {operation!r}: the idempotency key {key!r} was used before with another "
            "payload; a new request needs a new key"
        )
        self.operation = operation
        self.key = key


class LockLost(ForzeError):
    """The lease of ``key`` could not be trusted any longer; the protected block was cancelled.

    What the block did before is done. Whether somebody else holds the lock is unknown.
    """

    retryable = True

    def __init__(self, message: str, *, resource: str, key: str) -> None:
        super().__init__(message)
        self.resource = resource
        self.key = key


class TenantRequired(ForzeError):
    """A tenant-aware resource was used while no tenant was bound."""

    def __init__(self, resource: str) -> None:
        super().__init__(
            f"{resource} is tenant-aware and no tenant is bound; "
            "wrap the call in `with ctx.bind_tenant(tenant_id):`"
        )
        self.resource = resource


class Throttled(ForzeError):
    """Too much at once; ``retry_after`` says when it can succeed."""

    retryable = True

    def __init__(self, message: str, *, retry_after: timedelta) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CircuitOpen(ForzeError):
    """A circuit breaker let the call not through: nothing was called.

    ``retry_after`` is how long at least it will be; None where it was opened by hand.
    """

    retryable = True

    def __init__(
        self, *, policy: str, route: str | None = None, retry_after: timedelta | None = None
    ) -> None:
        wait = (
            "it was opened by hand and stays so until it is closed by hand"
            if retry_after is None
            else f"the next is let through in {retry_after.total_seconds():.3g} s at the earliest"
        )
        super().__init__(
            f"the circuit of {_policy_text(policy, route)} is open, the call was not made; {wait}"
        )
        self.policy = policy
        self.route = route
        self.retry_after = retry_after


class BulkheadFull(ForzeError):
    """So many calls of this policy are under way in this process that this one was not made."""

    retryable = True

    def __init__(
        self,
        *,
        policy: str,
        route: str | None = None,
        max_concurrent: int,
        waited: timedelta = timedelta(0),
    ) -> None:
        after = f" for {waited.total_seconds():.3g} s" if waited else " and the queue is full"
        super().__init__(
            f"{max_concurrent} calls of {_policy_text(policy, route)} are under way in this "
            f"process{after}, this one was not made; come again when some have ended, or raise "
            "max_concurrent or max_queue"
        )
        self.policy = policy
        self.route = route
        self.max_concurrent = max_concurrent
        self.waited = waited


class CallTimeout(ForzeError):
    """A call took longer than its policy allows and was cancelled; what it did is unknown.

    ``timeout`` is what it had. ``at_deadline``: less than the policy's, since the deadline bound
    to the task came first.
    """

    retryable = True

    def __init__(
        self,
        *,
        policy: str,
        route: str | None = None,
        timeout: timedelta,
        at_deadline: bool = False,
    ) -> None:
        when = "at the deadline bound to the task" if at_deadline else "by its timeout"
        super().__init__(
            f"a call of {_policy_text(policy, route)} was cancelled {when}, after "
            f"{timeout.total_seconds():.3g} s; whether it took effect is unknown: look before "
            "repeating it, or set retry_unknown=True where it may be repeated"
        )
        self.policy = policy
        self.route = route
        self.timeout = timeout
        self.at_deadline = at_deadline


def _policy_text(policy: str, route: str | None) -> str:
    return f"policy {policy!r}" if route is None else f"policy {policy!r}, route {route!r}"


class BackendError(ForzeError):
    """A server behind us failed. ``backend`` names it, ``outcome`` what became of a write.

    ``outcome`` is ``"none"`` (nothing took effect), ``"committed"`` (the write stands, what
    had to follow it failed) or ``"unknown"`` (the answer was lost; never taken for a no).
    """

    retryable = True

    def __init__(self, message: str, *, backend: str, outcome: WriteOutcome = "none") -> None:
        super().__init__(message)
        self.backend = backend
        self.outcome: WriteOutcome = outcome
        self.still_running: Callable[[], Awaitable[bool]] | None = None
        """Asks whether the server may still be executing the write whose answer was lost."""

    @property
    def committed(self) -> bool:
        """Whether the write stands although the call failed."""
        return self.outcome == "committed"

    def __reduce__(self) -> tuple[Any, ...]:
        # `still_running` asks over a connection of this process: it does not travel.
        return _rebuild, (type(self), self.args, {**self.__dict__, "still_running": None})


class BackendTimeout(BackendError):
    """The server did not answer in time; it may or may not have done the work."""


class BackendUnavailable(BackendError):
    """The server cannot be reached, or refuses work (loading, out of memory, read-only)."""

    def __init__(
        self,
        message: str,
        *,
        backend: str,
        outcome: WriteOutcome = "none",
        committed: bool = False,
    ) -> None:
        super().__init__(message, backend=backend, outcome="committed" if committed else outcome)


class BackendCorrupt(BackendError):
    """The server answered something that cannot be right (wrong type, undecodable)."""

    retryable = False
