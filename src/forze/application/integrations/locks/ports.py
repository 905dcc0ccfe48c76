"""What applications hold: the ports over any backend's stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TypeVar

from forze.application.contracts.deps import Resolver
from forze.application.contracts.dlock import (
    AcquiredLock,
    DistributedLockSpec,
    HeldLock,
    ReadWriteLockSpec,
    SemaphoreSpec,
)
from forze.application.contracts.introspection import LockView
from forze.application.integrations.locks.scope import Scopes
from forze.application.integrations.locks.store import (
    CountedPermits,
    Granted,
    InspectedLock,
    LockStore,
    StoredLock,
)
from forze.errors import BackendError, ValidationError

T = TypeVar("T")

_OWNER_BYTES = 1024


class DistributedLocks:
    """Locks by key. Implements ``DistributedLockPort``."""

    def __init__(
        self, store: LockStore[InspectedLock], spec: DistributedLockSpec, ctx: Resolver
    ) -> None:
        self._store = store
        self._scopes = Scopes(store, ctx, resource=f"lock {spec.name!r}", ttl=spec.ttl)

    def scope(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        return self._scopes.scope(key, wait=wait, heartbeat=heartbeat)

    async def acquire(self, key: str, owner: str) -> AcquiredLock | None:
        _checked(owner)
        async with self._store.open(key) as stored:
            sent = stored.clock()
            answer, _ = await _insisting(lambda: stored.attempt(owner, waits=False))
            if not isinstance(answer, Granted):
                return None
            acquired = AcquiredLock(key, owner, answer.token)
            self._scopes.ledger.granted(stored, acquired, sent)
        return acquired

    async def release(
        self, key: str | AcquiredLock, owner: str | AcquiredLock | None = None
    ) -> bool:
        key, owner, token = _acquisition(key, owner)
        async with self._store.open(key) as stored:
            released, after_unknown = await _insisting(lambda: stored.release(owner, token))
            if released or after_unknown:
                self._scopes.ledger.released(stored, owner)
        return released or after_unknown

    async def reset(self, key: str | AcquiredLock, owner: str | AcquiredLock | None = None) -> bool:
        key, owner, token = _acquisition(key, owner)
        async with self._store.open(key) as stored:
            sent = stored.clock()
            extended, _ = await _insisting(lambda: stored.extend(owner, token))
            if extended:
                self._scopes.ledger.extended(stored, owner, sent)
        return extended

    async def is_locked(self, key: str | AcquiredLock) -> bool:
        return await self.get_owner(key) is not None

    async def get_owner(self, key: str | AcquiredLock) -> str | None:
        async with self._store.open(_name(key)) as stored:
            return await stored.holder()

    async def get_ttl(self, key: str | AcquiredLock) -> timedelta | None:
        async with self._store.open(_name(key)) as stored:
            seconds = await stored.remaining_seconds()
        return None if seconds is None else timedelta(seconds=seconds)

    def locks(self) -> list[LockView]:
        """What this process holds or waits for. Implements ``HoldsLocks``, as do the others."""
        return self._scopes.ledger.views()


class Semaphores:
    """Semaphores by key. Implements ``SemaphorePort``."""

    def __init__(
        self, store: LockStore[CountedPermits], spec: SemaphoreSpec, ctx: Resolver
    ) -> None:
        self._store = store
        self._scopes = Scopes(
            store, ctx, resource=f"semaphore {spec.name!r}", ttl=spec.ttl, holdings=spec.permits
        )

    def scope(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        return self._scopes.scope(key, wait=wait, heartbeat=heartbeat)

    async def permits_held(self, key: str) -> int:
        async with self._store.open(key) as stored:
            return await stored.held()

    def locks(self) -> list[LockView]:
        return self._scopes.ledger.views()


class ReadWriteLocks:
    """Read/write locks by key. Implements ``ReadWriteLockPort``."""

    def __init__(
        self, store: LockStore[StoredLock], spec: ReadWriteLockSpec, ctx: Resolver
    ) -> None:
        self._scopes = Scopes(store, ctx, resource=f"read/write lock {spec.name!r}", ttl=spec.ttl)

    def reading(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        return self._scopes.scope(key, wait=wait, heartbeat=heartbeat, shared=True)

    def writing(
        self, key: str, *, wait: timedelta | None = None, heartbeat: bool = True
    ) -> AbstractAsyncContextManager[HeldLock]:
        return self._scopes.scope(key, wait=wait, heartbeat=heartbeat)

    def locks(self) -> list[LockView]:
        return self._scopes.ledger.views()


async def _insisting(call: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
    """The answer of ``call``, asked once more where it was lost; whether it was.

    Every call here can be repeated: its owner makes the second answer the first one's.
    """
    try:
        return await call(), False
    except BackendError as error:
        if error.outcome != "unknown" or not error.retryable:
            raise
    try:
        return await call(), True
    except BackendError as error:
        error.outcome = "unknown"  # whatever became of this one, the first may have been executed
        raise


def _acquisition(
    key: str | AcquiredLock, owner: str | AcquiredLock | None
) -> tuple[str, str, int | None]:
    """Key, owner, and the token where it has to be that very acquisition."""
    acquired = owner if isinstance(owner, AcquiredLock) else key
    if isinstance(acquired, AcquiredLock):
        holder = owner if isinstance(owner, str) else acquired.owner
        return _name(key), holder, acquired.token
    return _name(key), _checked(owner), None


def _name(key: str | AcquiredLock) -> str:
    return key.key if isinstance(key, AcquiredLock) else key


def _checked(owner: object) -> str:
    """An owner is text that can be sent."""
    try:
        if isinstance(owner, str) and 0 < len(owner.encode()) <= _OWNER_BYTES:
            return owner
    except UnicodeEncodeError:
        pass
    raise ValidationError(
        f"the owner of a lock is text of 1 to {_OWNER_BYTES} bytes (or the AcquiredLock itself), "
        f"not {owner!r}",
        field="owner",
    )
