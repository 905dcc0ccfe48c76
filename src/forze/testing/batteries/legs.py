"""What a backend hands to the batteries, and how they stage what happens at the same time."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

from forze.application.contracts.cache import CacheSpec
from forze.application.execution import ExecutionContext

T = TypeVar("T")

Calls: TypeAlias = tuple[Callable[[], Awaitable[object]], ...]
"""Calls that must all behave alike."""

CACHE = CacheSpec(name="things")
OTHER_CACHE = CacheSpec(name="others")
TENANT_CACHE = CacheSpec(name="owned_things")
EAGER_CACHE = CacheSpec(name="eager_things", early_refresh_beta=1.0)
SLIDING_CACHE = CacheSpec(
    name="sliding_things",
    ttl=timedelta(seconds=60),
    sliding_ttl=timedelta(seconds=10),
    early_refresh_beta=1.0,
)

PATIENCE = timedelta(seconds=10)
"""Nothing a battery waits for takes this long where the backend works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLeg:
    """A cache backend: two processes over one server.

    Both contexts answer ``CACHE``, ``EAGER_CACHE`` and ``SLIDING_CACHE`` (over one namespace),
    ``OTHER_CACHE`` (another one) and ``TENANT_CACHE`` (tenant-aware), with ``max_value_bytes``
    as given, and the transaction route ``items``.
    ``pass_time`` makes the server's entries older by that much.
    """

    ctx: ExecutionContext
    other: ExecutionContext
    max_value_bytes: int
    pass_time: Callable[[timedelta], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLeg:
    """A document backend with a cache: two processes over one database and one cache server.

    Both contexts answer the specs of ``items``, and the transaction route ``items``.
    """

    ctx: ExecutionContext
    other: ExecutionContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """How a leg takes its cache server away and brings it back (empty)."""

    break_backend: Callable[[], Awaitable[None]]
    restore: Callable[[], Awaitable[None]]


def apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run ``work`` as another request would: in a task with none of this one's context."""
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


async def waits(task: asyncio.Task[Any]) -> bool:
    """Whether ``task`` is held up by something, and not merely slow to answer."""
    done, _ = await asyncio.wait({task}, timeout=0.05)
    return not done


async def cancelled(task: asyncio.Task[Any]) -> bool:
    """Cancel ``task`` and wait for its end; whether it ended as cancelled."""
    task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE.total_seconds())
    return task.cancelled()
