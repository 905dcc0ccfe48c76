"""A process that takes a lock over and over, and writes under its token to a fenced file.

::

    python -m tests.faults.lock_worker DSN DIRECTORY TTL_MS (briefly | careless | patient)

Before it writes, a ``careless`` one computes until there is a file ``DIRECTORY/go``, while its
event loop stands still; a ``patient`` one awaits, for longer than any test. What each believes
goes to ``DIRECTORY/log``, a line at a time: ``start``, ``end`` (of belief, on the clock that leases
are counted on), ``work``, ``write`` (accepted or refused by the file).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.application.integrations.locks.lease import Held
from forze.errors import BackendError, LockLost, LockNotAcquired
from forze_redis import RedisClient, RedisConfig, RedisDepsModule, redis_lifecycle_step
from forze_redis.dlock import sleepless_clock


class FencedFile:
    """A resource that checks tokens: the highest it has seen, under a file lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, token: int) -> tuple[bool, int]:
        """Whether the write was accepted, and the highest token before it."""
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            highest = int(file.read() or "0")
            if token < highest:
                return False, highest
            file.truncate(0)
            file.write(str(token))
            return True, highest


class Journal:
    """Lines of several processes in one file, each written at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, what: str, token: int, at: float, more: object = "") -> None:
        """One line."""
        os.write(self._file, f"{os.getpid()} {what} {token} {at!r} {more}\n".encode())


async def hold(
    held: Held, journal: Journal, resource: FencedFile, work: Callable[[], Awaitable[None]]
) -> None:
    """Believe, work, write."""
    token = held.token
    journal.note("start", token, sleepless_clock())
    try:
        await asyncio.sleep(random.uniform(0, 0.02))
        journal.note("work", token, sleepless_clock())
        await work()
        accepted, highest = resource.write(token)
        journal.note("write", token, sleepless_clock(), f"{int(accepted)} {highest}")
        await asyncio.sleep(random.uniform(0, 0.02))
    finally:
        journal.note("end", token, min(sleepless_clock(), held._lease._until))


async def briefly() -> None:
    """Block the event loop for a moment: stopped here, it writes late."""
    time.sleep(random.choice([0.0, 0.01, 0.05]))  # noqa: ASYNC251


async def until_there_is(file: Path) -> None:
    """Block the event loop until then."""
    while not file.exists():  # noqa: ASYNC240
        time.sleep(0.002)  # noqa: ASYNC251


async def main(dsn: str, directory: Path, ttl: timedelta, how: str) -> None:
    works: dict[str, Callable[[], Awaitable[None]]] = {
        "briefly": briefly,
        "careless": partial(until_there_is, directory / "go"),
        "patient": partial(asyncio.sleep, 60),
    }
    work = works[how]
    journal, resource = Journal(directory / "log"), FencedFile(directory / "resource")
    spec = DistributedLockSpec(name="jobs", ttl=ttl)
    module = RedisDepsModule(client=RedisClient(), dlocks={"jobs": {"namespace": "test:jobs"}})
    config = RedisConfig(socket_timeout=0.5, require_at_start=False)
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(module),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn, config=config)),
    )
    async with runtime.scope() as ctx:
        while True:
            try:
                scope = ctx.dlock_scope(spec).scope("k", wait=timedelta(seconds=30))
                async with scope as held:
                    assert isinstance(held, Held)
                    await hold(held, journal, resource, work)
            except LockLost:
                journal.note("lost", 0, sleepless_clock())
            except (LockNotAcquired, BackendError) as error:
                journal.note("error", 0, sleepless_clock(), type(error).__name__)
            await asyncio.sleep(random.uniform(0, 0.003))


if __name__ == "__main__":
    dsn, directory, ttl_ms, how = sys.argv[1:]
    asyncio.run(main(dsn, Path(directory), timedelta(milliseconds=int(ttl_ms)), how))
