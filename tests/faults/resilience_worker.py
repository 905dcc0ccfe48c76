"""A process of a fleet: takes permits of a limit, breaks a circuit, or holds a probe of one.

::

    python -m tests.faults.resilience_worker DSN

Reads commands from its input, one a line, and answers each with a line: ``take CALLS`` (at once;
how many were granted), ``fail ROUTE`` (a call that fails; when it did, on the monotonic clock),
``watch ROUTE`` (until calls are refused; when), ``probe ROUTE`` (until it has one), ``end ROUTE
ok|failed`` (how that ended; the state after it).
"""

from __future__ import annotations

import asyncio
import sys
import time

from forze.application.contracts.resilience import (
    Admission,
    CircuitBreakerStrategy,
    RateLimitStrategy,
)
from forze_redis import RedisClient, redis_circuit_breaker_store, redis_rate_limit_store

LIMIT = RateLimitStrategy(permits=10, per=3600.0)
LIMIT_KEY = ("login", "user:1")
BREAKER = CircuitBreakerStrategy(
    min_throughput=1, break_duration=0.1, probe_lease=0.3, sampling_window=10.0
)
BREAKER_NAME = "payments"
PATIENTLY = 5.0


class Worker:
    """What the commands do."""

    def __init__(self, client: RedisClient) -> None:
        self._limits = redis_rate_limit_store(client, timeout=PATIENTLY)
        self._breakers = redis_circuit_breaker_store(client, timeout=PATIENTLY)
        self._probe: Admission | None = None

    async def take(self, calls: str) -> str:
        """So many calls at once."""
        asked = (self._limits.try_acquire(LIMIT_KEY, LIMIT) for _ in range(int(calls)))
        return str(sum(map(bool, await asyncio.gather(*asked))))

    async def fail(self, route: str) -> str:
        """A call that fails, which opens the circuit."""
        key = (BREAKER_NAME, route)
        admission = await self._breakers.admit(key, BREAKER)
        failed = time.monotonic()
        await self._breakers.record(key, BREAKER, False, admission)
        return str(failed)

    async def watch(self, route: str) -> str:
        """Call until that is refused."""
        while (await self._breakers.admit((BREAKER_NAME, route), BREAKER)).allowed:
            await asyncio.sleep(0.0005)
        return str(time.monotonic())

    async def probe(self, route: str) -> str:
        """Call until one is let through as a probe."""
        while True:
            self._probe = await self._breakers.admit((BREAKER_NAME, route), BREAKER)
            if self._probe.permit is not None:
                return "probing"
            await asyncio.sleep(0.005)

    async def end(self, route: str, how: str) -> str:
        """The probe ends."""
        key = (BREAKER_NAME, route)
        await self._breakers.record(key, BREAKER, how == "ok", self._probe)
        return (await self._breakers.admit(key, BREAKER)).state.value


async def main(dsn: str) -> None:
    """Do what the input says until it ends."""
    loop = asyncio.get_running_loop()
    async with await RedisClient().connect(dsn) as client:
        worker = Worker(client)
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command, *arguments = line.split()
            print(await getattr(worker, command)(*arguments), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
